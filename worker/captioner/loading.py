"""Which model, and which engine to run it in. Imported by the engine's process: nothing heavy."""

from __future__ import annotations

from captioner.domain import ModelInfo
from captioner.engine import Engine, InlineEngine, ProcessEngine
from captioner.errors import ModelLoadError
from captioner.model import CaptionModel
from captioner.plugins import load_plugins
from captioner.settings import Settings

#: Height and width in pixels of a provided model's pictures.
MAX_IMAGE_SIZE = 4_096


def open_engine(settings: Settings) -> Engine:
    """The engine these settings ask for, not started yet."""
    if settings.engine.inline:
        return InlineEngine(lambda: load_model(settings), settings.engine.max_batch)
    return ProcessEngine(load_model, (settings,), settings.engine, settings.log)


def load_model(settings: Settings) -> CaptionModel:
    """The model of the first plugin that provides one, or BLIP.

    Raises:
        ModelLoadError: it cannot be loaded.
        PluginError: a plugin failed to provide one.
    """
    provided = load_plugins(settings.plugins).first(
        "provide_captioner", check=_require_model, settings=settings
    )
    if provided is not None:
        model: CaptionModel = provided
        return model
    try:
        from captioner.inference import load_captioner  # torch: only where a model is wanted
    except ImportError as error:
        raise ModelLoadError(
            f"a worker needs what `pip install captioner[worker]` installs: {error}"
        ) from error
    wanted = settings.model
    return load_captioner(
        wanted.id,
        revision=wanted.revision,
        device=wanted.device,
        dtype=wanted.dtype,
        backend=wanted.backend,
    )


def _require_model(candidate: object) -> None:
    missing = [
        name for name in ("info", "check", "generate", "close") if not hasattr(candidate, name)
    ]
    if missing:
        raise TypeError(f"gave {type(candidate).__name__}, which has no {missing[0]}")
    info = candidate.info  # type: ignore[attr-defined]  # as was seen just now
    if not isinstance(info, ModelInfo):
        raise TypeError(f"gave a model whose info is {type(info).__name__}, not ModelInfo")
    size = info.image_size
    if not isinstance(size, int) or not 0 < size <= MAX_IMAGE_SIZE:  # memory is claimed by it
        raise ValueError(f"gave a model whose image_size is {size!r}, not 1 to {MAX_IMAGE_SIZE}")
    for name in ("id", "revision", "dtype", "device", "backend"):
        if not isinstance(value := getattr(info, name), str) or "\x00" in value:
            raise TypeError(f"gave a model whose {name} is {value!r}, not a text")

"""A checkpoint on this machine, found and checked before any model is built from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.demo import MODEL_PATH
from captioner.errors import ModelLoadError, describe
from captioner.inference.architecture import Architecture, read_architecture
from captioner.inference.hub import fetch_snapshot, looks_like_hub_id
from captioner.inference.json_files import read_json
from captioner.inference.pixels import PixelSettings, read_pixel_settings
from captioner.inference.weights import check_weights, sha256_of, weight_files
from captioner.options.values import shown

#: The model id that stands for the model in this package.
DEMO = "demo"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder in Hugging Face format whose files are complete and fit each other."""

    #: As the caller named it.
    model_id: str
    folder: Path
    #: Commit hash of a hub snapshot, or `sha256:…` of the weights of a local folder.
    revision: str
    architecture: Architecture
    pixels: PixelSettings
    #: The file that holds each tensor, by the tensor's name; every one of them is needed.
    weights: Mapping[str, Path]


def open_checkpoint(model_id: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint and check it.

    Args:
        model_id: a hub id, a local folder, or `demo`.
        revision: branch, tag or commit; of hub ids only.

    Raises:
        ModelLoadError: it cannot be found, or one of its files is missing, damaged, pickled or
            does not fit the others.
    """
    folder = _local_folder(model_id)
    local = folder is not None
    if local and revision is not None:
        raise ModelLoadError(
            f"revision {revision!r} (CAPTIONER_MODEL__REVISION) has no meaning for the local model "
            f"{model_id!r}: leave it unset"
        )
    if folder is None:
        folder = fetch_snapshot(model_id, revision, check=_read_architecture)
    try:
        architecture = _read_architecture(folder)
        pixels = read_pixel_settings(_read_processor(folder), architecture.vision.image_size)
        files = weight_files(folder)
        weights = check_weights(files, architecture)
    except ModelLoadError as error:
        if str(folder) in str(error):
            raise
        raise ModelLoadError(f"the model in {folder} cannot be used: {error}") from None
    return Checkpoint(
        model_id=model_id,
        folder=folder,
        revision=f"sha256:{sha256_of(files)}" if local else folder.name,
        architecture=architecture,
        pixels=pixels,
        weights=weights,
    )


def _local_folder(model_id: str) -> Path | None:
    """The folder a model id names, or None when it names a model of the hub."""
    if model_id == DEMO:
        if not (MODEL_PATH / "config.json").is_file():
            raise ModelLoadError(
                "the demo model is missing from this installation of captioner: reinstall it"
            )
        return MODEL_PATH
    try:
        path = Path(model_id).expanduser()
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # no leave to look, too long a name, no such user
        raise ModelLoadError(
            f"there is no looking for a folder {shown(model_id)}: {describe(error)}"
        ) from None
    if is_folder:
        return path
    if is_there:
        raise ModelLoadError(f"{model_id!r} is a file: name the folder that holds the model")
    if looks_like_hub_id(model_id):
        return None
    raise ModelLoadError(
        f"there is no folder {model_id!r}; CAPTIONER_MODEL__ID is a hub id (owner/name), a local "
        "folder in Hugging Face format, or `demo`"
    )


def _read_architecture(folder: Path) -> Architecture:
    return read_architecture(read_json(folder / "config.json"))


def _read_processor(folder: Path) -> dict[str, Any]:
    """The image processor's settings, from whichever file has them.

    transformers 5 nests them in processor_config.json, the hub's files have them in
    preprocessor_config.json; where there are both, the nested ones count, as in transformers.
    """
    if (folder / "processor_config.json").is_file():
        nested = read_json(folder / "processor_config.json").get("image_processor")
        if isinstance(nested, dict):
            return nested
    return read_json(folder / "preprocessor_config.json")

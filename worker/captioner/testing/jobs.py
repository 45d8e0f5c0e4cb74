"""A whole captioner for one test: a database, a worker without its process, and your plugin."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.domain import CaptionRequest, Job
from captioner.request_json import alt_text_from, options_from, video_from
from captioner.source import Source
from captioner.testing.models import FakeCaptionModel

if TYPE_CHECKING:
    from captioner.model import CaptionModel
    from captioner.plugins import Plugins
    from captioner.service import CaptionService
    from captioner.settings import Settings
    from captioner.store import Store

#: What is captioned where a test names no source: the fake model calls it
#: "mean colour 10 20 30".
COLOUR = (10, 20, 30)


@contextmanager
def registered_plugin(plugins: Plugins, plugin: object, name: str = "test") -> Iterator[None]:
    """Have a plugin registered inside the block only."""
    plugins.register(plugin, name)
    try:
        yield
    finally:
        plugins.unregister(name)


@contextmanager
def memory_store() -> Iterator[Store]:
    """An empty store with its schema, gone after the block.

    A SQLite file in a temporary folder: one in memory could not be shared by threads.
    """
    from captioner.store import Store, create_store_engine

    with tempfile.TemporaryDirectory(prefix="captioner-store-") as folder:
        path = Path(folder, "captioner.sqlite3")
        path.write_bytes(_empty_database())
        with Store(create_store_engine(f"sqlite:///{path}")) as store:
            yield store


@functools.cache
def _empty_database() -> bytes:
    """Made once a process: the migrations take longer than most tests."""
    from captioner.store import upgrade

    with tempfile.TemporaryDirectory(prefix="captioner-store-") as folder:
        path = Path(folder, "empty.sqlite3")
        upgrade(f"sqlite:///{path}")
        return path.read_bytes()


def caption_with(
    plugin: object,
    source: str | Path | None = None,
    *,
    name: str = "test",
    prompt: str | None = None,
    options: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    model: CaptionModel | None = None,
    settings: Settings | None = None,
) -> Job:
    """Run one job through all there is but Redis, with one plugin, and return it as SQL has it.

    That is: its row, the claim, the source, its frames, the model, the captions' hooks, the record,
    the observers. No other installed plugin is asked.

    Args:
        plugin: a module or an object with hook implementations.
        source: as a client names it; a file is allowed wherever it lies. None: a small picture.
        name: of the plugin.
        prompt: text the caption starts with.
        options: generation options by name, `alt_text` and `video`.
        metadata: the client's.
        model: what captions; by default the plugin's own, or `FakeCaptionModel`.
        settings: of the worker; local files then are where these allow them.
    """
    from captioner.plugins import Plugins

    with tempfile.TemporaryDirectory(prefix="captioner-test-") as folder, memory_store() as store:
        if source is None:
            source = _picture(Path(folder))
        plugins = Plugins()
        plugins.register(plugin, name)
        request = CaptionRequest(
            source=Source(str(source)),
            options=options_from(options or {}, prompt, {}),
            alt_text=alt_text_from(options or {}, {}),
            video=video_from(options or {}, {}),
            metadata=metadata or {},
        )
        settings = settings or _settings(Path(folder), request.source)
        store.add([request])
        with closing(_service(store, plugins, model, settings)) as service:
            service.run([request.id])
            return store.get(request.id)


def _service(
    store: Store, plugins: Plugins, model: CaptionModel | None, settings: Settings
) -> CaptionService:
    from captioner.engine import InlineEngine
    from captioner.media import StillImages
    from captioner.sampling import InlineSampler
    from captioner.service import CaptionService

    def load() -> CaptionModel:
        own = plugins.first("provide_captioner", check=lambda _: None, settings=settings)
        found: CaptionModel = model or own or FakeCaptionModel()
        return found

    plugins.register(StillImages(settings.media), "still_image")
    engine = InlineEngine(load, max_batch=8)
    engine.start()
    owner = store.register_worker("test")
    sampler = InlineSampler(plugins, settings.media)
    service = CaptionService(store, engine, sampler, plugins, settings, owner)
    service.reports.begin(settings)
    return service


def _settings(folder: Path, source: Source) -> Settings:
    from captioner.settings import MediaSettings, Settings

    roots = (folder, Path(source.path).parent) if source.scheme == "file" else (folder,)
    return Settings(data_dir=folder, media=MediaSettings(allowed_roots=roots))


def _picture(folder: Path) -> Path:
    from PIL import Image

    path = folder / "picture.png"
    Image.new("RGB", (20, 10), COLOUR).save(path)
    return path

"""Provider hooks of a job: who is asked, in what order, and what comes of a wrong answer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner import (
    Caption,
    CaptionRequest,
    ErrorCode,
    Event,
    Frame,
    FrameCaptions,
    JobError,
    JobState,
    Media,
    Source,
    hookimpl,
)
from captioner.engine import InlineEngine
from captioner.errors import PluginError
from captioner.loading import load_model
from captioner.pipeline import Pipeline
from captioner.plugins import Plugins
from captioner.providers import Providers
from captioner.sampling import ChildSampler, InlineSampler, open_plugins
from captioner.settings import (
    LogSettings,
    MediaSettings,
    ModelSettings,
    PluginSettings,
    Settings,
)
from captioner.testing import FakeCaptionModel, caption_with
from distributions import install

GREY = "mean colour 10 20 30"
CAPTION = Caption(text="a cat", continuation="a cat", score=-1.0)


class Opens:
    """Opens `test://…` by drawing a picture into the job's folder."""

    def __init__(self, result: Any = None) -> None:
        self.result = result
        self.folders: list[Path] = []
        self.asked: list[str] = []

    @hookimpl
    def open_source(self, source: Source, folder: Path) -> Any:
        self.asked.append(source.scheme)
        self.folders.append(folder)
        if isinstance(self.result, BaseException):
            raise self.result
        if self.result is not None:
            return self.result
        if source.scheme != "test":
            return None
        Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / "drawn.png")
        return Media(folder / "drawn.png", source.display)


class Processes:
    """Appends a word to every caption, or gives what it is told to."""

    def __init__(self, word: str = "", result: Any = None) -> None:
        self.word = word
        self.result = result

    @hookimpl
    def process_caption(self, caption: Caption) -> Any:
        if isinstance(self.result, BaseException):
            raise self.result
        if self.result is not None:
            return self.result
        return replace(caption, text=f"{caption.text} {self.word}", rank=99, origin="a lie")


class Combines:
    """Makes one caption of all frames, or gives what it is told to."""

    def __init__(self, result: Any = None) -> None:
        self.result = result
        self.frames: Sequence[FrameCaptions] = ()

    @hookimpl
    def sample_frames(self, media: Media, image_size: int) -> Iterator[Frame]:
        for number in (1, 2):
            yield Frame(np.full((image_size, image_size, 3), number, np.uint8), number / 2)

    @hookimpl
    def combine_captions(self, frames: Sequence[FrameCaptions]) -> Any:
        self.frames = frames
        return self.result


def failure(plugin: object, *arguments: Any) -> tuple[ErrorCode, str]:
    """How a job with this plugin failed."""
    job = caption_with(plugin, *arguments, name="mine")
    assert job.state is JobState.FAILED
    assert job.failure
    return job.failure.code, job.failure.message


# --- Sources --------------------------------------------------------------------------------------


def test_a_plugin_opens_another_scheme_in_a_folder_that_is_gone_afterwards() -> None:
    plugin = Opens()
    assert caption_with(plugin, "test://x?token=secret").caption == "mean colour 1 2 3"
    (folder,) = plugin.folders
    assert not folder.exists()
    assert folder != Path("/dev")


def test_what_no_plugin_wants_is_opened_as_ever(tmp_path: Path) -> None:
    plugin = Opens()
    assert caption_with(plugin).caption == GREY
    assert plugin.asked == ["file"]
    assert plugin.folders[0].name.startswith("captioner-job-")  # it might have wanted to write
    code, message = failure(Opens(), "other://x")
    assert code is ErrorCode.SOURCE_NOT_ALLOWED
    assert "'other'" in message


def test_without_such_a_plugin_a_local_file_costs_no_folder() -> None:
    plugins = Plugins()
    providers = Providers(plugins, MediaSettings())
    assert not providers.needs_folder(Source("/a.jpg"))
    assert providers.needs_folder(Source("https://cms.example/a.jpg"))
    plugins.register(Opens(), "opens")
    assert providers.needs_folder(Source("/a.jpg"))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (KeyError("oops"), "plugin 'mine' failed in open_source: KeyError: 'oops'"),
        ("/a/path", "plugin 'mine' failed in open_source: TypeError: gave str instead of Media"),
        (
            Media("/a/path", "x"),  # type: ignore[arg-type]  # that is the mistake
            "plugin 'mine' failed in open_source: TypeError: gave Media without a Path and a name",
        ),
        (
            Media(Path("/no/such/file"), "x"),
            "plugin 'mine' failed in open_source: ValueError: gave 'file', which is no file",
        ),
    ],
)
def test_a_plugin_that_opens_wrongly_fails_the_job_by_its_name(result: Any, message: str) -> None:
    assert failure(Opens(result)) == (ErrorCode.PLUGIN_FAILED, message)


def test_a_plugin_says_itself_why_a_source_cannot_be_read() -> None:
    plugin = Opens(JobError(ErrorCode.FETCH_FAILED, "no such bucket", retryable=False))
    assert failure(plugin) == (ErrorCode.FETCH_FAILED, "no such bucket")


def test_what_a_plugin_brings_has_the_limits_of_what_captioner_brings(tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(bytes(2000))
    settings = Settings(data_dir=tmp_path, media=MediaSettings(max_image_bytes=1999))
    job = caption_with(Opens(Media(large, "x")), "test://host/a?token=secret", settings=settings)
    assert job.failure
    assert job.failure.code is ErrorCode.MEDIA_TOO_LARGE
    assert job.failure.message.startswith("test://host/a?…: 2000 bytes, at most 1999")


# --- Captions -------------------------------------------------------------------------------------


def test_captions_are_handed_from_plugin_to_plugin() -> None:
    plugins = Plugins()
    plugins.register(Processes("third"), "a")
    plugins.register(Processes("second"), "b")
    plugins.register(Processes("first"), "c")
    (processed,) = Providers(plugins, MediaSettings()).finish(
        [FrameCaptions(time_seconds=None, captions=(CAPTION,))], CaptionRequest(source=Source("/x"))
    )
    assert processed.text == "a cat first second third"
    assert (processed.rank, processed.origin) == (0, "a")


def test_every_caption_is_processed_and_keeps_its_rank() -> None:
    job = caption_with(Processes("!"), name="shout", options={"num_return_sequences": 3})
    assert [caption.text for caption in job.captions] == [f"{GREY} !"] * 3
    assert [caption.rank for caption in job.captions] == [0, 1, 2]
    assert {caption.origin for caption in job.captions} == {"shout"}
    assert {caption.continuation for caption in job.captions} == {GREY}


def test_who_leaves_the_text_alone_is_not_its_origin() -> None:
    class Adds:
        @hookimpl
        def process_caption(self, caption: Caption) -> Caption:
            return replace(caption, alt_text="A cat", origin="a lie")

    (caption,) = caption_with(Adds()).captions
    assert (caption.text, caption.alt_text, caption.origin) == (GREY, "A cat", "model")


def wrong(**changes: Any) -> Caption:
    return replace(CAPTION, **changes)


WRONG = [
    ("text", "TypeError: gave str instead of a Caption"),
    (wrong(text=None), "TypeError: gave a caption whose text is NoneType, not a text"),
    (wrong(alt_text=5), "TypeError: gave a caption whose alt_text is int, not a text"),
    (wrong(text="a\x00b"), "ValueError: gave a caption whose text is not valid Unicode"),
    (wrong(continuation="\ud800"), "ValueError: gave a caption whose continuation is"),
    (wrong(text="x" * 100_001), "ValueError: gave a caption whose text has 100001 characters;"),
    (wrong(score=math.nan), "ValueError: gave a caption whose score is not a finite"),
    (wrong(score="1"), "ValueError: gave a caption whose score is not a finite number"),
    (wrong(beam_score=True), "ValueError: gave a caption whose beam_score is not a fin"),
    (wrong(start_seconds=math.inf), "ValueError: gave a caption whose start_seconds"),
    (RuntimeError("tired"), "RuntimeError: tired"),
    (SystemExit(3), "SystemExit: 3"),
]


@pytest.mark.parametrize(("result", "message"), WRONG)
def test_a_plugin_that_processes_wrongly_fails_the_job_by_its_name(
    result: Any, message: str
) -> None:
    code, found = failure(Processes(result=result))
    assert code is ErrorCode.PLUGIN_FAILED
    assert found.startswith(f"plugin 'mine' failed in process_caption: {message}")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([], "ValueError: gave no caption"),
        ("a cat", "TypeError: gave str instead of a list of Captions"),
        (CAPTION, "TypeError: gave Caption instead of a list of Captions"),
        *[([CAPTION, result], message) for result, message in WRONG[:-2]],
    ],
)
def test_a_plugin_that_combines_wrongly_fails_the_job_by_its_name(
    result: Any, message: str
) -> None:
    code, found = failure(Combines(result))
    assert code is ErrorCode.PLUGIN_FAILED
    assert found.startswith(f"plugin 'mine' failed in combine_captions: {message}")


def test_a_plugin_combines_the_captions_of_frames() -> None:
    first = Caption(text="mean colour 1 1 1", continuation="x", score=-1.0, start_seconds=0.5)
    plugin = Combines([replace(CAPTION, rank=7, end_seconds=2.5), first])
    job = caption_with(plugin, name="mine")
    assert [frame.time_seconds for frame in plugin.frames] == [0.5, 1.0]
    assert [frame.captions[0].text for frame in plugin.frames] == [
        "mean colour 1 1 1",
        "mean colour 2 2 2",
    ]
    assert [(c.rank, c.text, c.origin) for c in job.captions] == [
        (0, "a cat", "mine"),
        (1, "mean colour 1 1 1", "model"),
    ]
    assert job.captions[0].end_seconds == 2.5


def test_what_is_said_of_frames_cannot_be_changed_for_the_next_plugin() -> None:
    """Who was asked next failed for it, and was blamed."""

    class Empties(Combines):
        @hookimpl
        def combine_captions(self, frames: Any) -> None:
            frames.clear()

    code, message = failure(Empties())
    assert code is ErrorCode.PLUGIN_FAILED
    assert message.startswith("plugin 'mine' failed in combine_captions: AttributeError: 'tuple'")


def test_without_such_a_plugin_each_frame_keeps_its_best() -> None:
    job = caption_with(Combines(None), options={"num_return_sequences": 2})
    assert [(c.rank, c.start_seconds, c.text) for c in job.captions] == [
        (0, 0.5, "mean colour 1 1 1"),
        (1, 1.0, "mean colour 2 2 2"),
    ]


def test_a_plugin_that_samples_without_end_is_stopped(tmp_path: Path) -> None:
    """It would take a decoder and grow tables for ever."""

    class Endless:
        @hookimpl
        def sample_frames(self, image_size: int) -> Iterator[Frame]:
            pixels = np.full((image_size, image_size, 3), 5, np.uint8)
            return (Frame(pixels, float(second)) for second in itertools.count())

    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "a.png")
    limits = MediaSettings(allowed_roots=(tmp_path,), max_video_frames=40)
    settings = Settings(data_dir=tmp_path, media=limits)
    job = caption_with(Endless(), tmp_path / "a.png", settings=settings)
    assert job.failure
    assert job.failure.code is ErrorCode.VIDEO_TOO_LONG
    assert job.failure.message.endswith(
        "a.png: more than 40 frames were sampled (CAPTIONER_MEDIA__MAX_VIDEO_FRAMES)"
    )


PROVIDES = """
from captioner import ModelInfo, hookimpl
from captioner.testing import FakeCaptionModel

@hookimpl
def provide_captioner(settings):
    model = FakeCaptionModel()
    wanted = settings.model.id
    size = {"large": 10**6, "odd": "8"}.get(wanted, 8)
    name = "a\\x00" if wanted == "nul" else "mine"
    facts = {"revision": "", "dtype": "", "device": "cpu", "backend": ""}
    model.info = ModelInfo(id=name, image_size=size, **facts)
    if wanted == "dict":
        model.info = {"id": "mine"}
    return model
"""


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ("dict", "TypeError: gave a model whose info is dict, not ModelInfo"),
        ("large", "ValueError: gave a model whose image_size is 1000000, not 1 to 4096"),
        ("odd", "ValueError: gave a model whose image_size is '8', not 1 to 4096"),
        ("nul", "TypeError: gave a model whose id is 'a\\x00', not a text"),
    ],
)
def test_a_model_that_says_nonsense_of_itself_is_not_loaded(
    wanted: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "provides", PROVIDES)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins = PluginSettings(enabled=("provides",))
    assert load_model(Settings(plugins=plugins)).info.id == "mine"
    with pytest.raises(PluginError) as raised:
        load_model(Settings(plugins=plugins, model=ModelSettings(id=wanted)))
    assert raised.value.message == f"plugin 'provides' failed in provide_captioner: {problem}"


# --- Counting -------------------------------------------------------------------------------------


def test_each_failed_job_is_counted_once(tmp_path: Path) -> None:
    plugins = Plugins()
    plugins.register(Processes(result=KeyError("oops")), "guilty")
    limits = MediaSettings(allowed_roots=(tmp_path,))
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "a.png")
    request = CaptionRequest(source=Source(str(tmp_path / "a.png")))
    sampling = open_plugins(PluginSettings(enabled=()), limits)
    with closing(InlineEngine(FakeCaptionModel, max_batch=8)) as engine:
        engine.start()
        pipeline = Pipeline(engine, InlineSampler(sampling, limits), limits, plugins=plugins)
        for _ in range(3):
            with pytest.raises(PluginError):
                pipeline.caption(request)
    (counted,) = plugins.errors.take()
    assert (counted.plugin, counted.hook, counted.errors) == ("guilty", "process_caption", 3)
    assert counted.last_error == "KeyError: 'oops'"


TORN = """
from captioner import JobError, ErrorCode, hookimpl

@hookimpl
def sample_frames(media):
    if media.name == "refused":
        raise JobError(ErrorCode.DECODE_FAILED, "no")
    raise RuntimeError("the film tore")
"""


def test_what_fails_in_a_decoders_process_is_counted_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "torn", TORN)
    monkeypatch.syspath_prepend(str(tmp_path))
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "a.png")
    limits = MediaSettings(allowed_roots=(tmp_path,), decoders=1)
    sampler = ChildSampler(PluginSettings(enabled=("torn",)), limits, LogSettings())
    plugins = Plugins()  # of this process, which did not load it
    with closing(sampler), closing(InlineEngine(FakeCaptionModel, max_batch=8)) as engine:
        engine.start()
        pipeline = Pipeline(engine, sampler, limits, plugins=plugins)
        with pytest.raises(PluginError) as raised:
            pipeline.caption(CaptionRequest(source=Source(str(tmp_path / "a.png"))))
        with pytest.raises(JobError, match="no") as refused:
            list(sampler.sample(Media(tmp_path / "a.png", "refused"), REQUEST, 8))
    assert raised.value.message == (
        "plugin 'torn' failed in sample_frames: RuntimeError: the film tore"
    )
    assert not isinstance(refused.value, PluginError)
    (counted,) = plugins.errors.take()
    assert (counted.plugin, counted.hook) == ("torn", "sample_frames")
    assert counted.last_error == "RuntimeError: the film tore"


REQUEST = CaptionRequest(source=Source("/x"))


# --- The kit --------------------------------------------------------------------------------------


def test_the_kit_tells_observers_before_it_returns() -> None:
    class Hears:
        def __init__(self) -> None:
            self.heard: list[str] = []

        @hookimpl
        def worker_ready(self, settings: Settings) -> None:
            self.heard.append("ready")

        @hookimpl
        def observe(self, event: Event) -> None:
            self.heard.append(event.type)

        @hookimpl
        def worker_stopping(self) -> None:
            self.heard.append("stopping")

    plugin = Hears()
    job = caption_with(plugin, prompt="a photo of", metadata={"page": 7})
    assert plugin.heard == ["ready", "caption.succeeded", "stopping"]
    assert (job.caption, job.metadata) == (f"a photo of {GREY}", {"page": 7})


def test_the_kit_uses_the_model_of_the_plugin() -> None:
    class Provides:
        @hookimpl
        def provide_captioner(self, settings: Settings) -> FakeCaptionModel:
            return FakeCaptionModel(image_size=3)

    job = caption_with(Provides())
    assert job.model
    assert job.model.image_size == 3

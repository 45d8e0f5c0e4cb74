"""Source to captions: frames stream into the engine, and who cancels does not wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner import CaptionRequest, ErrorCode, Frame, JobError, Media, Source, hookimpl
from captioner.captioning import FRAMES_IN_FLIGHT, Captioned
from captioner.domain import Caption, Lane, ModelInfo
from captioner.engine import EngineStats, InlineEngine
from captioner.errors import CanceledError, HostBusyError
from captioner.media import StillImages, hosts
from captioner.options import GenerationOptions
from captioner.pipeline import Pipeline
from captioner.plugins import Plugins
from captioner.sampling import ChildSampler, InlineSampler, Sampler
from captioner.settings import LogSettings, MediaSettings, PluginSettings
from captioner.testing import FakeCaptionModel

INFO = FakeCaptionModel().info


class SlowEngine:
    """Captions a picture when it is told to, and remembers what was submitted."""

    max_batch = 64

    def __init__(self) -> None:
        self.futures: list[Future[list[Caption]]] = []
        self.submitted = threading.Semaphore(0)

    @property
    def info(self) -> ModelInfo:
        return INFO

    @property
    def stats(self) -> EngineStats:
        return EngineStats()

    @property
    def failed(self) -> bool:
        return False

    def start(self, poll: Callable[[], None]) -> None: ...

    def submit(self, pixels: Any, options: GenerationOptions, lane: Lane) -> Future[list[Caption]]:
        self.futures.append(Future())
        self.submitted.release()
        return self.futures[-1]

    def answer(self, number: int) -> None:
        text = str(number)
        self.futures[number].set_result([Caption(text=text, continuation=text, score=0.0)])

    def close(self) -> None: ...


class Film:
    """A film of so many frames, which remembers how many were taken and whether it was closed."""

    def __init__(self, count: int, at_third: Callable[[], None] = lambda: None) -> None:
        self.count = count
        self.at_third = at_third
        self.made = 0
        self.closed = threading.Event()

    @hookimpl
    def sample_frames(self, image_size: int) -> Iterator[Frame]:
        def frames() -> Generator[Frame, None, None]:
            try:
                for number in range(self.count):
                    self.made += 1
                    if self.made == 3:
                        self.at_third()
                    pixels = np.full((image_size, image_size, 3), number + 1, np.uint8)
                    yield Frame(pixels, number / 2)
            finally:
                self.closed.set()

        return frames()


def sampler(plugin: object) -> InlineSampler:
    plugins = Plugins()
    plugins.register(plugin, "test")
    return InlineSampler(plugins, MediaSettings())


@pytest.fixture
def picture(tmp_path: Path) -> CaptionRequest:
    path = tmp_path / "picture.png"
    Image.new("RGB", (20, 10), (10, 20, 30)).save(path)
    return CaptionRequest(source=Source(str(path)))


@pytest.fixture
def limits(tmp_path: Path) -> MediaSettings:
    return MediaSettings(allowed_roots=(tmp_path,), decoders=1)


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.mark.parametrize("children", [True, False])
def test_a_picture_is_captioned(
    picture: CaptionRequest, limits: MediaSettings, children: bool
) -> None:
    engine = InlineEngine(FakeCaptionModel, max_batch=8)
    engine.start()
    sampling: Sampler = (
        ChildSampler(PluginSettings(enabled=()), limits, LogSettings())
        if children
        else sampler(StillImages(limits))
    )
    with closing(sampling), closing(engine):
        captioned = Pipeline(engine, sampling, limits).caption(picture)
    assert [caption.text for caption in captioned.captions] == ["mean colour 10 20 30"]
    assert captioned.captions[0].start_seconds is None
    assert set(captioned.timings) == {"fetch", "decode", "engine"}
    assert all(seconds > 0 for seconds in captioned.timings.values())


def test_frames_stream_into_the_engine_so_many_at_a_time(
    picture: CaptionRequest, limits: MediaSettings, thread: ThreadPoolExecutor
) -> None:
    engine, film = SlowEngine(), Film(50)
    job = thread.submit(Pipeline(engine, sampler(film), limits).caption, picture)
    for number in range(50):
        if number >= FRAMES_IN_FLIGHT:
            assert len(engine.futures) == number
            assert film.made <= number + 1  # the next one is made meanwhile
            engine.answer(number - FRAMES_IN_FLIGHT)
        assert engine.submitted.acquire(timeout=30)
    assert film.closed.wait(30)  # before the last ones are captioned
    for number in range(50 - FRAMES_IN_FLIGHT, 50):
        engine.answer(number)
    captions = job.result(30).captions
    assert [caption.text for caption in captions] == [str(number) for number in range(50)]
    assert [caption.rank for caption in captions] == list(range(50))
    assert [caption.start_seconds for caption in captions] == [n / 2 for n in range(50)]


def test_a_canceled_job_stops_waiting_for_the_engine(
    picture: CaptionRequest, limits: MediaSettings, thread: ThreadPoolExecutor
) -> None:
    engine, film, canceled = SlowEngine(), Film(100), threading.Event()
    pipeline = Pipeline(engine, sampler(film), limits)
    job = thread.submit(pipeline.caption, picture, canceled=canceled.is_set)
    for _ in range(FRAMES_IN_FLIGHT):
        assert engine.submitted.acquire(timeout=30)
    canceled.set()
    with pytest.raises(CanceledError):
        job.result(30)
    assert film.closed.is_set()
    assert film.made == FRAMES_IN_FLIGHT + 1
    assert all(future.cancelled() for future in engine.futures)


def test_a_job_that_was_canceled_before_it_began_does_nothing(limits: MediaSettings) -> None:
    canceled = threading.Event()
    canceled.set()
    request = CaptionRequest(source=Source("/not/allowed"))  # which nobody finds out
    with pytest.raises(CanceledError):
        Pipeline(SlowEngine(), sampler(Film(1)), limits).caption(request, canceled=canceled.is_set)


def test_a_film_that_is_canceled_is_not_sampled_to_its_end(
    picture: CaptionRequest, limits: MediaSettings
) -> None:
    canceled = threading.Event()
    engine, film = SlowEngine(), Film(FRAMES_IN_FLIGHT, at_third=canceled.set)
    with pytest.raises(CanceledError):
        Pipeline(engine, sampler(film), limits).caption(picture, canceled=canceled.is_set)
    assert film.made == 3
    assert film.closed.is_set()
    assert all(future.cancelled() for future in engine.futures)


def test_a_job_past_its_time_fails(picture: CaptionRequest, limits: MediaSettings) -> None:
    engine, film = SlowEngine(), Film(FRAMES_IN_FLIGHT + 1)
    request = replace(picture, deadline_at=datetime.now(UTC) + timedelta(seconds=1))
    with pytest.raises(JobError, match="not done by 20") as caught:
        Pipeline(engine, sampler(film), limits).caption(request)
    assert caught.value.code is ErrorCode.DEADLINE_EXCEEDED
    assert all(future.cancelled() for future in engine.futures)


def test_a_frame_that_fails_fails_the_job_and_cancels_the_rest(
    picture: CaptionRequest, limits: MediaSettings, thread: ThreadPoolExecutor
) -> None:
    engine, film = SlowEngine(), Film(100)
    job = thread.submit(Pipeline(engine, sampler(film), limits).caption, picture)
    for _ in range(FRAMES_IN_FLIGHT):
        assert engine.submitted.acquire(timeout=30)
    engine.futures[0].set_exception(JobError(ErrorCode.INTERNAL, "no"))
    with pytest.raises(JobError, match="no"):
        job.result(30)
    assert film.closed.is_set()
    assert all(future.cancelled() for future in engine.futures[1:])


def test_an_engine_that_fails_with_a_timeout_of_its_own_is_not_waited_for(
    picture: CaptionRequest, limits: MediaSettings, thread: ThreadPoolExecutor
) -> None:
    engine = SlowEngine()
    job = thread.submit(Pipeline(engine, sampler(Film(1)), limits).caption, picture)
    assert engine.submitted.acquire(timeout=30)
    engine.futures[0].set_exception(TimeoutError("its own"))
    with pytest.raises(TimeoutError, match="its own"):
        job.result(30)


def test_what_was_fetched_is_removed(tmp_path: Path, limits: MediaSettings) -> None:
    seen: list[Path] = []

    class Looks:
        @hookimpl
        def sample_frames(self, media: Media, image_size: int) -> list[Frame]:
            assert media.path.read_bytes() == b"x"
            seen.append(media.path)
            return [Frame(np.zeros((image_size, image_size, 3), np.uint8))]

    engine = SlowEngine()
    with ThreadPoolExecutor(1) as executor:
        request = CaptionRequest(source=Source("data:,x"))
        job: Future[Captioned]
        job = executor.submit(Pipeline(engine, sampler(Looks()), limits).caption, request)
        assert engine.submitted.acquire(timeout=30)
        engine.answer(0)
        job.result(30)
    assert not seen[0].parent.exists()


def test_a_busy_host_gives_the_job_back(
    limits: MediaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "PATIENCE_SECONDS", 0.01)
    pipeline = Pipeline(SlowEngine(), sampler(Film(1)), limits)
    source = Source("http://127.0.0.1:9/never-asked")
    with ExitStack() as stack:
        for _ in range(limits.connections_per_host):
            stack.enter_context(pipeline._hosts.hold(source, Lane.INTERACTIVE))
        with pytest.raises(HostBusyError) as caught:
            pipeline.caption(CaptionRequest(source=source))
    assert caught.value.retry_after_seconds == hosts.SOONEST_SECONDS

"""An attempt at a video begins where the one before it was cut off, wherever that was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from captioner import (
    Caption,
    CaptionRequest,
    ErrorCode,
    Frame,
    FrameCaptions,
    GenerationOptions,
    JobError,
    Media,
    Source,
    VideoOptions,
    frame_log,
    hookimpl,
)
from captioner.captioning import FRAMES_IN_FLIGHT
from captioner.domain import JobState, Lane, ModelInfo, Progress, Requeue
from captioner.engine import InlineEngine
from captioner.errors import StoreUnavailableError
from captioner.options.video import Mode
from captioner.plugins import Plugins
from captioner.sampling import InlineSampler
from captioner.service import CaptionService
from captioner.settings import MediaSettings, RetrySettings, Settings
from captioner.store import Store, create_store_engine, upgrade
from captioner.testing import FakeCaption, FakeCaptionModel
from captioner_video.sampling import frames_of
from videos import clock, lengthened, plain, told, write_video

SIZE = 64
COUNT, RATE = 120, 10
STEADY = {"x264-params": "scenecut=0:keyint=30:min-keyint=30:bframes=0"}


# --- The frames that are left ---------------------------------------------------------------------

INTERVAL = VideoOptions(strategy="interval", interval_seconds=1)
#: What makes a video hard to go on with.
CASES: dict[str, tuple[VideoOptions, int, MediaSettings]] = {
    "uniform": (VideoOptions(), 1, MediaSettings()),
    "interval": (INTERVAL, 1, MediaSettings()),
    "keyframes": (VideoOptions(strategy="keyframes"), 1, MediaSettings()),
    "ends early": (INTERVAL, 3, MediaSettings()),
    "ends before the first time": (VideoOptions(), 40, MediaSettings()),
    "one keyframe for many": (INTERVAL, 1, MediaSettings(max_decoded_frames=1)),
}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("film")
    pictures = clock(COUNT, (128, 96))
    return write_video(
        folder / "a.mkv", pictures, rate=RATE, codec="libx264", options=STEADY
    ).read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_wherever_it_was_cut_off_the_rest_is_given(film: bytes, tmp_path: Path, case: str) -> None:
    options, factor, limits = CASES[case]
    path = tmp_path / "a.mkv"
    path.write_bytes(lengthened(film, factor))

    def sampled(done: Sequence[float] = ()) -> list[tuple[float, int, int | None, float | None]]:
        stream = frames_of(Media(path, "a"), "matroska,webm", options, SIZE, limits, done)
        return [
            (f.time_seconds or 0.0, told(f.pixels), f.expected_frames, f.media_seconds)
            for f in stream
        ]

    whole = sampled()
    assert len(whole) >= 4
    for number in range(len(whole) + 1):
        rest = sampled([seconds for seconds, *_ in whole[:number]])
        if case == "one keyframe for many":  # an attempt of its own may decode as much again
            assert len(rest) == len(whole) - number
        else:
            assert rest == whole[number:]


def test_the_first_frame_that_is_left_is_new(tmp_path: Path) -> None:
    """Nobody has looked at the one before it."""
    path = write_video(tmp_path / "a.mp4", [plain((9, 99, 190))] * 30)
    stream = frames_of(
        Media(path, "a"), "mov", VideoOptions(frames=4), SIZE, MediaSettings(), [0.375]
    )
    assert [frame.repeated for frame in stream] == [False, True, True]


# --- From attempt to attempt ----------------------------------------------------------------------


class Film:
    """A film of frames that each have a colour of their own; remembers what it was asked for."""

    def __init__(self, shades: Sequence[int], *, heeds: bool = True) -> None:
        """`heeds`: it leaves out what is done, as plugins may."""
        self.shades = shades
        self.heeds = heeds
        self.asked: list[list[float]] = []
        self.given = 0
        self.told: Sequence[FrameCaptions] = ()

    @hookimpl
    def sample_frames(self, image_size: int, done_seconds: Collection[float]) -> Iterator[Frame]:
        self.asked.append(list(done_seconds))
        before: int | None = None
        for number, shade in enumerate(self.shades):
            if self.heeds and number / 2 in done_seconds:
                continue
            self.given += 1
            yield Frame(
                np.full((image_size, image_size, 3), shade, np.uint8),
                number / 2,
                expected_frames=len(self.shades),
                media_seconds=99.0,
                repeated=shade == before,
            )
            before = shade

    @hookimpl
    def combine_captions(self, frames: Sequence[FrameCaptions]) -> Sequence[Caption]:
        self.told = frames
        return [frame.captions[0] for frame in frames]


class Deaf:
    """A plugin of before there was anything to resume."""

    def __init__(self, film: Film) -> None:
        self.film = film

    @hookimpl
    def sample_frames(self, image_size: int) -> Iterator[Frame]:
        return self.film.sample_frames(image_size, ())


class BreakingModel(FakeCaptionModel):
    """Fails, once, at one shade; remembers all that it captioned."""

    def __init__(self, breaks_at: int) -> None:
        super().__init__(8)
        self.breaks_at: int | None = breaks_at
        self.seen: list[int] = []

    def generate(
        self, images: Sequence[NDArray[np.uint8]], options: Sequence[GenerationOptions]
    ) -> list[list[FakeCaption]]:
        shades = [int(pixels[0, 0, 0]) for pixels in images]
        if self.breaks_at in shades:
            self.breaks_at = None
            raise JobError(ErrorCode.INTERNAL, "it broke", retryable=True)
        self.seen += shades
        return super().generate(images, options)


class House:
    """A service with one film and a model that breaks in the middle of it."""

    def __init__(self, url: str, folder: Path, film: object, breaks_at: int) -> None:
        upgrade(url)
        self.store = Store(create_store_engine(url))
        self.model = BreakingModel(breaks_at)
        path = folder / "film"
        path.write_bytes(b"x")
        self.limits = MediaSettings(allowed_roots=(folder,))
        self.plugins = Plugins()
        self.plugins.register(film, "film")
        # One at a time: what is done before the break is known to the frame.
        engine = InlineEngine(lambda: self.model, max_batch=1)
        engine.start()
        settings = Settings(
            data_dir=folder,
            media=self.limits,
            retry=RetrySettings(first_delay_seconds=0.001, max_delay_seconds=0.001),
        )
        self.service = CaptionService(
            self.store,
            engine,
            InlineSampler(self.plugins, self.limits),
            self.plugins,
            settings,
            self.store.register_worker("test"),
        )
        self.request = CaptionRequest(source=Source(str(path)), lane=Lane.VIDEO)
        self.progress: list[Progress] = []

    def run(self) -> JobState:
        """One attempt."""
        (state,) = self.service.run([self.request.id], self.progress.append)
        return state

    def run_again(self) -> JobState:
        """The next one, when it is due."""
        while not (states := self.service.run([self.request.id], self.progress.append)):
            threading.Event().wait(0.01)
        return states[0]


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every frame at once."""
    monkeypatch.setattr(frame_log, "KEEP_SECONDS", 0.0)


SHADES = [*range(1, 41)]


def kept(house: House) -> list[float | None]:
    job = house.store.get(house.request.id)
    return [one.time_seconds for one in house.store.recorded_frames(job, house.model.info)]


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("plugin", ["heeds", "ignores", "deaf"])
def test_a_frame_that_was_kept_is_not_captioned_again(
    database_url: str, tmp_path: Path, plugin: str
) -> None:
    film = Film(SHADES, heeds=plugin == "heeds")
    deaf = plugin == "deaf"
    house = House(database_url, tmp_path, Deaf(film) if deaf else film, breaks_at=30)
    house.store.add([house.request])
    with closing(house.service):
        assert house.run() is JobState.QUEUED
        done = kept(house)
        assert len(done) >= 10
        assert done == [number / 2 for number in range(len(done))]
        job = house.store.get(house.request.id)
        assert (job.frames_done, job.frames_total) == (len(done), 40)
        before, given = house.model.seen[:], film.given
        house.model.seen.clear()
        assert house.run_again() is JobState.SUCCEEDED
        again = house.store.get(house.request.id)
        assert [one.text for one in again.captions] == [f"mean colour {n} {n} {n}" for n in SHADES]
        assert (again.frames_done, again.frames_total) == (40, 40)
        assert kept(house) == []
    assert set(before) >= set(SHADES[: len(done)])
    assert sorted(house.model.seen) == SHADES[len(done) :]
    assert film.asked[-1] == ([] if deaf else done)
    assert film.given - given == (40 - len(done) if plugin == "heeds" else 40)
    assert [one.done for one in house.progress] == sorted({one.done for one in house.progress})


def cut_off(house: House, count: int, model: ModelInfo) -> list[FrameCaptions]:
    """An attempt that was cut off after so many frames, as its worker left it."""
    (job,) = house.store.claim([house.request.id], house.service.owner)
    frames = [
        FrameCaptions(
            time_seconds=number / 2,
            captions=(Caption(text=f"said {number}", continuation="", score=-0.5),),
            media_seconds=99.0,
        )
        for number in range(count)
    ]
    progress = Progress(
        job_id=job.id, attempt=1, model=model, frames=tuple(frames), first=0, done=count, total=60
    )
    assert house.store.record_frames(progress)
    house.store.requeue([Requeue(job_id=job.id, attempt=1)])
    return frames


@pytest.mark.parametrize("heeds", [True, False])
def test_a_frame_may_repeat_one_of_the_attempt_before(
    sqlite_url: str, tmp_path: Path, heeds: bool
) -> None:
    film = Film([1 + number // 15 for number in range(60)], heeds=heeds)
    house = House(sqlite_url, tmp_path, film, breaks_at=99)
    house.store.add([house.request])
    with closing(house.service):
        cut_off(house, 20, house.model.info)
        assert house.run() is JobState.SUCCEEDED
    said = [one.captions[0].text for one in film.told]
    assert said[:20] == [f"said {number}" for number in range(20)]
    # Who has not looked at the frame before the first new one cannot know that it repeats it.
    assert said[20:30] == ["mean colour 2 2 2" if heeds else "said 19"] * 10
    assert said[30:] == [f"mean colour {n} {n} {n}" for n in [3] * 15 + [4] * 15]
    assert house.model.seen == ([2, 3, 4] if heeds else [3, 4])


def test_another_model_begins_anew(sqlite_url: str, tmp_path: Path) -> None:
    film = Film(SHADES)
    house = House(sqlite_url, tmp_path, film, breaks_at=99)
    house.store.add([house.request])
    with closing(house.service):
        cut_off(house, 20, replace(house.model.info, revision="the one before"))
        assert house.run() is JobState.SUCCEEDED
    assert sorted(house.model.seen) == SHADES
    assert film.asked == [[]]


def test_what_was_cut_off_after_its_last_frame_is_only_told(
    database_url: str, tmp_path: Path
) -> None:
    film = Film(SHADES)
    house = House(database_url, tmp_path, film, breaks_at=99)
    house.store.add([house.request])
    with closing(house.service):
        frames = cut_off(house, 40, house.model.info)
        assert house.run() is JobState.SUCCEEDED
    assert [(one.time_seconds, one.captions[0].text) for one in film.told] == [
        (one.time_seconds, one.captions[0].text) for one in frames
    ]
    assert (house.model.seen, film.given) == ([], 0)


@pytest.mark.usefixtures("often")
def test_a_job_that_is_another_workers_is_dropped(sqlite_url: str, tmp_path: Path) -> None:
    """Told by the refusal to keep its frames, long before the next heartbeat."""
    film = Film([*range(1, 201)])
    house = House(sqlite_url, tmp_path, film, breaks_at=999)
    house.store.add([house.request])

    def cancel(progress: Progress) -> None:
        house.store.cancel([progress.job_id])

    with closing(house.service):
        (state,) = house.service.run([house.request.id], cancel)
        assert state is JobState.CANCELED
        job = house.store.get(house.request.id)
        assert kept(house) == []
    assert job.frames_done is not None
    assert len(house.model.seen) < 60
    assert film.given < 60


class Stopper(Film):
    """A film during whose frame of this number the worker is told to end."""

    def __init__(self, shades: Sequence[int], at: int) -> None:
        super().__init__(shades)
        self.at = at
        self.stop: Callable[[], None] = lambda: None

    @hookimpl
    def sample_frames(self, image_size: int, done_seconds: Collection[float]) -> Iterator[Frame]:
        for frame in super().sample_frames(image_size, done_seconds):
            if frame.time_seconds == self.at / 2:
                self.stop()
            yield frame


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_worker_that_ends_hands_a_video_back_with_all_that_is_done(
    database_url: str, tmp_path: Path, repeats: int
) -> None:
    shades = [1 + number // repeats for number in range(60)]
    film = Stopper(shades, at=32)
    house = House(database_url, tmp_path, film, breaks_at=99)
    film.stop = house.service.stop_taking
    house.store.add([house.request])
    with closing(house.service):
        assert house.run() is JobState.QUEUED
        job = house.store.get(house.request.id)
        done = kept(house)
    assert (job.attempt, job.retries, job.failure) == (1, 0, None)
    assert 16 <= len(done) <= 33
    assert done == [number / 2 for number in range(len(done))]
    assert film.given == 33
    # All that was captioned is kept, and nothing else.
    assert set(house.model.seen) == set(shades[: len(done)])
    assert job.frames_done == len(done)


def test_a_video_whose_last_frame_is_with_the_engine_is_finished(
    sqlite_url: str, tmp_path: Path
) -> None:
    film = Stopper(SHADES, at=39)
    house = House(sqlite_url, tmp_path, film, breaks_at=99)
    film.stop = house.service.stop_taking
    house.store.add([house.request])
    with closing(house.service):
        assert house.run() is JobState.SUCCEEDED
    assert sorted(house.model.seen) == SHADES


@pytest.mark.parametrize("mode", ["joint", "both"])
def test_what_needs_all_frames_together_is_finished(
    sqlite_url: str, tmp_path: Path, mode: Mode
) -> None:
    """Nothing of it can be kept, so that handing it back would cost all of it."""
    film = Stopper(SHADES, at=20)
    house = House(sqlite_url, tmp_path, film, breaks_at=99)
    film.stop = house.service.stop_taking
    request = replace(house.request, video=VideoOptions(mode=mode))
    house.store.add([request])
    with closing(house.service):
        assert house.run() is JobState.SUCCEEDED
    assert film.given == len(SHADES)


@pytest.mark.parametrize("store_is_away", [False, True])
def test_a_crash_costs_sixteen_frames_at_most(
    sqlite_url: str,
    tmp_path: Path,
    store_is_away: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However fast they are captioned; a database that is away holds nothing up."""
    monkeypatch.setattr(frame_log, "KEEP_SECONDS", 3600.0)
    film = Film([*range(1, 201)])
    house = House(sqlite_url, tmp_path, film, breaks_at=999)
    house.store.add([house.request])
    at_risk = [0]

    def watched(progress: Progress) -> bool:
        at_risk.append(len(house.model.seen) - progress.first)
        if store_is_away:
            raise StoreUnavailableError("away")
        return record(progress)

    record = house.store.record_frames
    monkeypatch.setattr(house.store, "record_frames", watched)
    with closing(house.service):
        assert house.run() is JobState.SUCCEEDED
    assert sorted(house.model.seen) == film.shades
    assert max(at_risk) <= FRAMES_IN_FLIGHT
    # An hour of patience: it was asked once.
    assert len(at_risk) - 1 == 1 if store_is_away else len(at_risk) > 200 / FRAMES_IN_FLIGHT


def test_short_videos_and_pictures_cost_no_statement(sqlite_url: str, tmp_path: Path) -> None:
    film = Film(SHADES[:8])
    house = House(sqlite_url, tmp_path, film, breaks_at=99)
    house.store.add([house.request])
    with closing(house.service):
        assert house.run() is JobState.SUCCEEDED
        job = house.store.get(house.request.id)
    assert house.progress == []
    assert (job.frames_done, job.frames_total) == (8, 8)

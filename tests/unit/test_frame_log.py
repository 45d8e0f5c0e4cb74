"""When frames are kept, and what becomes of those that cannot be."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from captioner import Caption, FrameCaptions, VideoOptions, frame_log
from captioner.domain import CaptionRequest, ClaimedJob, Lane, Progress
from captioner.errors import StoreUnavailableError
from captioner.frame_log import FrameLog
from captioner.options.video import Mode
from captioner.source import Source
from captioner.store import Store
from captioner.testing import FakeCaptionModel, memory_store
from stored import claimed

MODEL = FakeCaptionModel().info
CAPTION = Caption(text="a", continuation="a", score=-0.5)


@pytest.fixture
def store() -> Iterator[Store]:
    with memory_store() as store:
        yield store


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_log, "KEEP_SECONDS", 0.0)


class Keeper:
    """Keeps frames, or does what it is told to instead."""

    def __init__(self) -> None:
        self.asked: list[Progress] = []
        self.error: Exception | None = None

    def __call__(self, progress: Progress) -> bool:
        if self.error:
            raise self.error
        self.asked.append(progress)
        return True


def opened(job: ClaimedJob, keeper: Keeper) -> FrameLog:
    return FrameLog(job, MODEL, load=lambda _: [], keep=keeper)


def add(log: FrameLog, seconds: float) -> None:
    frame = FrameCaptions(time_seconds=seconds, captions=(CAPTION,))
    log.add(frame, 9)
    log.keep_now_and_then()


def test_nothing_is_kept_where_nothing_is_new(store: Store) -> None:
    keeper = Keeper()
    log = opened(claimed(store)[0], keeper)
    log.keep_now_and_then()
    add(log, 0.0)
    log.keep_now_and_then()
    assert [(one.first, one.done, one.total) for one in keeper.asked] == [(0, 1, 9)]


def test_not_more_often_than_once_a_second(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_log, "KEEP_SECONDS", 3600.0)
    keeper = Keeper()
    log = opened(claimed(store)[0], keeper)
    for seconds in range(99):
        add(log, seconds)
    assert keeper.asked == []
    assert log.done == 99


def test_what_a_database_that_is_away_could_not_keep_is_kept_later(store: Store) -> None:
    keeper = Keeper()
    log = opened(claimed(store)[0], keeper)
    add(log, 0.0)
    keeper.error = StoreUnavailableError("away")
    add(log, 1.0)
    add(log, 2.0)
    assert not log.lost
    keeper.error = None
    add(log, 3.0)
    assert [one.first for one in keeper.asked] == [0, 1]
    assert [frame.time_seconds for frame in keeper.asked[1].frames] == [1.0, 2.0, 3.0]


def test_what_cannot_be_kept_at_all_is_said_once(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Keeper()
    log = opened(claimed(store)[0], keeper)
    keeper.error = ValueError("a NUL character")
    with caplog.at_level(logging.WARNING):
        for seconds in range(3):
            add(log, seconds)
    assert [one.message for one in caplog.records] == [
        "frames cannot be kept: ValueError: a NUL character"
    ]
    assert (log.done, log.lost) == (3, False)


@pytest.mark.parametrize("mode", ["joint", "both"])
def test_what_needs_all_frames_together_keeps_counts_alone(store: Store, mode: Mode) -> None:
    keeper = Keeper()
    request = CaptionRequest(
        source=Source("/a.mp4"), lane=Lane.VIDEO, video=VideoOptions(mode=mode)
    )
    store.add([request])
    (job,) = store.claim([request.id], "w")
    log = opened(job, keeper)
    add(log, 0.0)
    assert [(one.frames, one.done) for one in keeper.asked] == [((), 1)]

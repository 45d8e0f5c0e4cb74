"""Frames of videos that are kept until their job ends, on both databases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select

from captioner.domain import (
    Caption,
    ClaimedJob,
    FrameCaptions,
    JobFailure,
    JobState,
    Lane,
    ModelInfo,
    Outcome,
    Progress,
    Requeue,
)
from captioner.errors import ErrorCode
from captioner.store import Store, create_store_engine, upgrade
from captioner.store.models import FrameRow
from stored import NOON, claimed, delete_old, nobody_listens, submit, success

MODEL = ModelInfo(
    id="demo", revision="abc", dtype="float32", device="cpu", backend="fast", image_size=64
)
FAILURE = JobFailure(ErrorCode.DECODE_FAILED, "damaged", retryable=False)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    engine = create_store_engine(database_url)
    upgrade(engine)
    with Store(engine) as store:
        yield store


def frame(seconds: float, text: str = "a red circle") -> FrameCaptions:
    captions = [
        Caption(text=f"{text} {rank}", continuation=text, score=-0.1 - rank, rank=rank)
        for rank in range(2)
    ]
    return FrameCaptions(time_seconds=seconds, captions=tuple(captions), media_seconds=99.5)


def progress(job: ClaimedJob, *seconds: float, first: int = 0, **values: Any) -> Progress:
    frames = tuple(map(frame, seconds))
    given = {"model": MODEL, "frames": frames, "first": first, "done": first + len(frames)}
    return Progress(job_id=job.id, attempt=job.attempt, **{**given, "total": 9, **values})


def rows(store: Store) -> int:
    with store._database.reading() as connection:
        return connection.scalar(select(func.count()).select_from(FrameRow)) or 0


def counts(store: Store, job_id: UUID) -> tuple[int | None, int | None]:
    job = store.get(job_id)
    return job.frames_done, job.frames_total


def video(store: Store) -> ClaimedJob:
    (job,) = claimed(store, lane=Lane.VIDEO)
    return job


def next_attempt(store: Store, job: ClaimedJob) -> ClaimedJob:
    store.requeue([Requeue(job_id=job.id, attempt=job.attempt)])
    (again,) = store.claim([job.id], "other", now=NOON)
    return again


def test_a_job_knows_nothing_of_frames_at_first(store: Store) -> None:
    (job_id,) = submit(store)
    assert counts(store, job_id) == (None, None)


def test_frames_are_there_for_the_next_attempt(store: Store) -> None:
    job, third = video(store), 1 / 3  # which no decimal fraction is
    assert store.record_frames(progress(job, 0.0, third))
    assert store.record_frames(progress(job, 2.5, first=2, total=None))
    assert counts(store, job.id) == (3, None)
    again = next_attempt(store, job)
    assert again.frames_done == 3
    assert store.recorded_frames(again, MODEL) == [frame(0.0), frame(third), frame(2.5)]


def test_frames_written_twice_are_one(store: Store) -> None:
    job = video(store)
    for _ in range(2):
        assert store.record_frames(progress(job, 0.0, 1.0))
    assert rows(store) == 2


def test_two_frames_of_one_time_are_two(store: Store) -> None:
    job = video(store)
    store.record_frames(progress(job, 4.0, 4.0))
    assert store.recorded_frames(job, MODEL) == [frame(4.0), frame(4.0)]


def test_counts_alone_may_be_kept(store: Store) -> None:
    job = video(store)
    assert store.record_frames(progress(job, done=4))
    assert (counts(store, job.id), rows(store)) == ((4, 9), 0)


def test_jobs_do_not_share_frames(store: Store) -> None:
    one, other = claimed(store, 2)
    store.record_frames(progress(one, 1.0))
    store.record_frames(progress(other, 2.0))
    assert store.recorded_frames(one, MODEL) == [frame(1.0)]
    store.cancel([one.id])
    assert store.recorded_frames(other, MODEL) == [frame(2.0)]


# --- Who may write --------------------------------------------------------------------------------


def test_a_stale_worker_writes_nothing(store: Store) -> None:
    job = video(store)
    store.record_frames(progress(job, 0.0))
    store.requeue([Requeue(job_id=job.id, attempt=job.attempt)])
    assert not store.record_frames(progress(job, 1.0, first=1))  # queued
    (again,) = store.claim([job.id], "other", now=NOON)
    assert not store.record_frames(progress(job, 1.0, first=1))  # another's
    assert (rows(store), counts(store, job.id)) == (1, (1, 9))
    assert store.record_frames(progress(again, 1.0, first=1))


@pytest.mark.parametrize("end", ["canceled", "recorded"])
def test_nothing_is_written_for_a_job_that_has_ended(store: Store, end: str) -> None:
    job = video(store)
    if end == "canceled":
        store.cancel([job.id])
    else:
        store.record([success(job)])
    assert not store.record_frames(progress(job, 0.0))
    assert (rows(store), counts(store, job.id)) == (0, (None, None))


def test_what_cannot_be_stored_is_said(store: Store) -> None:
    job = video(store)
    bad = replace(frame(0.0).captions[0], score=math.nan)
    frames = (FrameCaptions(time_seconds=0.0, captions=(bad,)),)
    with pytest.raises(ValueError, match="Out of range float"):
        store.record_frames(progress(job, frames=frames))
    assert (rows(store), counts(store, job.id)) == (0, (None, None))


@pytest.mark.parametrize("change", [{"id": "other"}, {"revision": "def"}])
def test_frames_of_another_model_are_deleted(store: Store, change: dict[str, str]) -> None:
    job, other = video(store), replace(MODEL, **change)  # type: ignore[arg-type]  # by name
    store.record_frames(progress(job, 0.0, 1.0))
    again = next_attempt(store, job)
    assert store.recorded_frames(job, other) == []
    assert rows(store) == 2  # a stale worker deletes nothing
    assert store.recorded_frames(again, other) == []
    assert (rows(store), counts(store, job.id)) == (0, (0, 9))
    assert store.record_frames(progress(again, 0.0, model=other))
    assert store.recorded_frames(again, other) == [frame(0.0)]


def test_a_model_may_move_to_another_device(store: Store) -> None:
    job = video(store)
    store.record_frames(progress(job, 0.0))
    assert store.recorded_frames(job, replace(MODEL, device="cuda", dtype="float16"))


# --- When they go ---------------------------------------------------------------------------------


def test_a_success_deletes_frames_and_counts_them(store: Store) -> None:
    job, picture = claimed(store, 2)
    store.record_frames(progress(job, 0.0, 1.0))
    outcome = replace(success(job), frames_done=8)
    assert store.record([outcome, success(picture)]) == {job.id, picture.id}
    assert (rows(store), counts(store, job.id)) == (0, (8, 8))
    assert counts(store, picture.id) == (None, None)


def test_a_failure_deletes_frames_and_says_how_far_it_came(store: Store) -> None:
    job = video(store)
    store.record_frames(progress(job, 0.0, 1.0))
    store.record(
        [
            Outcome(
                job_id=job.id,
                attempt=1,
                state=JobState.FAILED,
                failure=FAILURE,
                frames_done=3,
            )
        ]
    )
    assert (rows(store), counts(store, job.id)) == (0, (3, 9))


def test_a_result_that_cannot_be_stored_deletes_frames_too(store: Store) -> None:
    job = video(store)
    store.record_frames(progress(job, 0.0))
    bad = replace(frame(0.0).captions[0], score=math.nan)
    store.record([replace(success(job), captions=(bad,), frames_done=1)])
    assert store.get(job.id).state is JobState.FAILED
    assert rows(store) == 0


def test_a_stale_result_deletes_nothing(store: Store) -> None:
    job = video(store)
    store.record_frames(progress(job, 0.0))
    next_attempt(store, job)
    assert store.record([replace(success(job), frames_done=1)]) == set()
    assert rows(store) == 1


def test_canceling_deletes_frames(store: Store) -> None:
    job, other = claimed(store, 2)
    store.record_frames(progress(job, 0.0))
    store.record_frames(progress(other, 0.0))
    store.cancel([job.id])
    assert (rows(store), counts(store, job.id)) == (1, (1, 9))


def test_expiring_deletes_frames(store: Store) -> None:
    (job,) = claimed(store, deadline_at=NOON + timedelta(hours=1))
    store.record_frames(progress(job, 0.0))
    store.requeue([Requeue(job_id=job.id, attempt=job.attempt)])
    assert store.expire_overdue(9, now=NOON + timedelta(hours=2)) == [job.id]
    assert rows(store) == 0


def test_giving_up_deletes_frames(store: Store) -> None:
    job = video(store)
    store.record_frames(progress(job, 0.0))
    lost = store.expire_workers(timedelta(seconds=1), 9, max_losses=1, now=NOON)
    assert (lost.failed, rows(store)) == (1, 0)


def test_taking_back_keeps_them(store: Store) -> None:
    job = video(store)
    store.record_frames(progress(job, 0.0))
    assert store.expire_workers(timedelta(seconds=1), 9, max_losses=9, now=NOON).requeued == 1
    assert rows(store) == 1


def test_retention_deletes_what_an_older_worker_left(store: Store) -> None:
    """Workers of the version before know nothing of frames, and end jobs without them."""
    job = video(store)
    store.record_frames(progress(job, 0.0))
    store.record([success(job)], now=NOON)
    nobody_listens(store)
    assert rows(store) == 1
    assert delete_old(store, NOON + timedelta(days=1), 9) == 1
    assert rows(store) == 0

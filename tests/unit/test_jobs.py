"""The Python door, on the embedded database and broker."""

from __future__ import annotations

import inspect
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from pydantic import SecretStr

from captioner import jobs as door
from captioner.domain import CaptionRequest, JobState, Lane
from captioner.errors import (
    DuplicateClientKeyError,
    InvalidRequestError,
    JobNotFoundError,
    StoreUnavailableError,
)
from captioner.jobs import Jobs
from captioner.republishing import UNDISPATCHED_AFTER, Republisher
from captioner.settings import BrokerSettings, GenerationSettings, Settings
from captioner.source import Source

UNKNOWN = "7c9e6679-7425-40de-944b-e07fc1f90ae7"


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    settings = Settings(data_dir=tmp_path, generation=GenerationSettings(num_beams=2))
    with Jobs(settings) as jobs:
        yield jobs


@pytest.mark.parametrize("name", ["submit", "get", "wait", "cancel"])
def test_the_door_says_what_its_functions_take(name: str) -> None:
    function, method = getattr(door, name), getattr(Jobs, name)
    _, *parameters = inspect.signature(method).parameters.values()
    assert list(inspect.signature(function).parameters.values()) == parameters
    assert function.__doc__ == method.__doc__


def test_a_submission_is_a_queued_row_and_a_message(jobs: Jobs) -> None:
    job = jobs.submit("/a.jpg", prompt="a photo of", metadata={"ref": "ä"}, client_key="k")
    assert (job.state, job.attempt, job.lane) == (JobState.QUEUED, 0, Lane.INTERACTIVE)
    assert job.dispatched_at is not None
    assert job.metadata == {"ref": "ä"}
    assert (job.options.prompt, job.options.num_beams) == ("a photo of", 2)
    assert jobs.get(str(job.id)) == job


def test_a_source_may_be_a_path(jobs: Jobs) -> None:
    assert jobs.submit(Path("/a/b.jpg")).source == Source("/a/b.jpg")


def test_a_deadline_is_a_time_with_its_zone(jobs: Jobs) -> None:
    noon = datetime(2031, 6, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert jobs.submit("/a.jpg", deadline_at=noon).deadline_at == noon
    with pytest.raises(InvalidRequestError, match="time zone"):
        jobs.submit("/a.jpg", deadline_at=noon.replace(tzinfo=None))


def test_the_same_client_key_never_makes_a_second_job(jobs: Jobs) -> None:
    with ThreadPoolExecutor(8) as executor:
        ids = set(executor.map(lambda _: jobs.submit("/a.jpg", client_key="k").id, range(40)))
    assert len(ids) == 1
    with pytest.raises(DuplicateClientKeyError, match="'k'"):
        jobs.submit("/b.jpg", client_key="k")
    assert jobs.count_by_state()[JobState.QUEUED] == 1


def test_sampling_needs_no_word_about_beams(jobs: Jobs) -> None:
    job = jobs.submit("/a.jpg", options={"do_sample": True, "seed": 1})
    assert job.options.num_beams == 1


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("", {}),
        ("/a.jpg", {"options": {"num_beams": -1}}),
        ("/a.jpg", {"options": {"nonsense": 1}}),
        ("/a.jpg", {"options": {"prompt": "one"}, "prompt": "two"}),
        ("/a.jpg", {"metadata": {"x": float("nan")}}),
        ("/a.jpg", {"metadata": {"x": object()}}),
        ("/a.jpg", {"client_key": ""}),
        ("/a.jpg", {"client_key": 5}),
        ("/a.jpg", {"metadata": [1]}),
        ("/a.jpg", {"options": [1]}),
        ("/a.jpg", {"options": {1: 2}}),
        ("/a.jpg", {"lane": "nope"}),
    ],
)
def test_a_wrong_request_leaves_no_row(
    jobs: Jobs, source: str, arguments: dict[str, object]
) -> None:
    with pytest.raises(InvalidRequestError):
        jobs.submit(source, **arguments)  # type: ignore[arg-type]  # wrong on purpose
    assert sum(jobs.count_by_state().values()) == 0


def test_unknown_jobs_are_not_pending(jobs: Jobs) -> None:
    for call in (jobs.get, jobs.cancel):
        with pytest.raises(JobNotFoundError, match=UNKNOWN):
            call(UNKNOWN)
    with pytest.raises(JobNotFoundError):
        jobs.wait(UNKNOWN, timeout_seconds=5)
    for wrong in ("17", 17, None, b"17"):
        with pytest.raises(InvalidRequestError, match="not a job id"):
            jobs.get(wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_wait_ends_with_the_job_or_with_the_time(jobs: Jobs) -> None:
    job = jobs.submit("/a.jpg")
    with pytest.raises(TimeoutError):
        jobs.wait(job.id, timeout_seconds=0.1)
    started = time.monotonic()
    timer = threading.Timer(0.3, jobs.cancel, [job.id])
    timer.start()
    assert jobs.wait(job.id, timeout_seconds=30).state is JobState.CANCELED
    assert time.monotonic() - started < 10
    timer.join()


def test_canceling_twice_is_canceling_once(jobs: Jobs) -> None:
    job = jobs.submit("/a.jpg")
    first, second = jobs.cancel(job.id), jobs.cancel(job.id)
    assert first == second
    assert first.state is JobState.CANCELED


def test_pages_are_newest_first_and_meet(jobs: Jobs) -> None:
    submitted = [jobs.submit(f"/{number}.jpg").id for number in range(5)]
    first = jobs.list(limit=2)
    rest = jobs.list(limit=10, before=first[-1])
    assert [job.id for job in first + rest] == submitted[::-1]


def test_bulk_jobs_share_messages_and_results_keep_the_order(jobs: Jobs) -> None:
    requests = [
        CaptionRequest(source=Source(f"/{number}.jpg"), lane=Lane.BULK) for number in range(130)
    ]
    submissions = jobs.submit_all(requests)
    assert [s.job.id for s in submissions] == [r.id for r in requests]
    assert all(s.created and s.job.dispatched_at for s in submissions)


def test_without_a_broker_jobs_are_kept_and_published_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = BrokerSettings(url=SecretStr("redis://127.0.0.1:1/0"))
    with Jobs(Settings(data_dir=tmp_path, broker=away)) as jobs:
        job = jobs.submit("/a.jpg")
    assert (job.state, job.dispatched_at) == (JobState.QUEUED, None)
    assert "the broker cannot be reached" in caplog.text
    with Jobs(Settings(data_dir=tmp_path)) as jobs:
        republisher = Republisher(jobs._app, jobs._store)
        # The submitter may still be publishing.
        assert republisher.publish_undispatched(job.created_at) == 0
        later = job.created_at + UNDISPATCHED_AFTER * 2
        assert republisher.publish_undispatched(later) == 1
        assert republisher.publish_undispatched(later) == 0
        assert jobs.get(job.id).dispatched_at is not None


def test_jobs_that_were_published_are_submitted_though_nobody_can_stamp_them(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Told otherwise, a client without a key would submit them again."""

    def away(*_: object, **__: object) -> None:
        raise StoreUnavailableError("database … cannot be used: away")

    monkeypatch.setattr(jobs._store, "mark_dispatched", away)
    job = jobs.submit("/a.jpg")
    assert jobs.get(job.id).state is JobState.QUEUED
    assert "may be once more: database … cannot be used: away" in caplog.text


def test_the_module_uses_the_environment_and_survives_a_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTIONER_DATA_DIR", str(tmp_path))
    door.default.cache_clear()
    try:
        job = door.submit("/a.jpg")
        before = door.default()._store
        child = os.fork()
        if child == 0:  # pragma: no cover  # measured in the parent alone
            fresh = door.default()._store is not before
            os._exit(0 if fresh and door.get(job.id) == job else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert door.cancel(job.id).state is JobState.CANCELED
        door.default().close()
    finally:
        door.default.cache_clear()


def test_the_children_of_a_fork_do_not_share_its_connections(jobs: Jobs) -> None:
    """A site makes its own `Jobs` and a server forks: two processes in one connection hung."""
    job = jobs.submit("/a.jpg")
    before = jobs._store, jobs._app
    jobs._connections._opening.acquire()  # as by a thread that is in the middle of it
    child = os.fork()
    if child == 0:  # pragma: no cover  # measured in the parent alone
        fresh = jobs._store is not before[0] and jobs._app is not before[1]
        os._exit(0 if fresh and jobs.cancel(job.id).state is JobState.CANCELED else 1)
    jobs._connections._opening.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (jobs._store, jobs._app) == before
    assert jobs.get(job.id).state is JobState.CANCELED

"""The pool of a real worker: grown, shrunk, revoked from, and ended in every way there is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis
from celery import Celery
from sqlalchemy import create_engine, text

import captioner.demo
from captioner.celery import create_app, publish
from captioner.demo.scenes import draw, scenes
from captioner.domain import CaptionRequest, JobState, Lane
from captioner.jobs import Jobs
from captioner.source import Source
from captioner.store import upgrade
from hosts import HeldPictures
from processes import Worker, environment, running_worker, settings_of

PATIENCE_SECONDS = 60
#: Long enough for anything that would happen to have happened.
QUIET_SECONDS = 2.0


@pytest.fixture
def env(tmp_path: Path, redis_url: str, sqlite_url: str) -> dict[str, str]:
    upgrade(sqlite_url)
    return environment(
        tmp_path,
        BROKER__URL=redis_url,
        DATABASE__URL=sqlite_url,
        WORKER__CONCURRENCY="1",
        WORKER__HEARTBEAT_SECONDS="1",
    )


@pytest.fixture
def jobs(env: dict[str, str]) -> Iterator[Jobs]:
    with Jobs(settings_of(env)) as jobs:
        yield jobs


@pytest.fixture
def app(jobs: Jobs) -> Iterator[Celery]:
    app = create_app(jobs.settings)
    yield app
    app.close()


@pytest.fixture
def held() -> Iterator[HeldPictures]:
    content = BytesIO()
    draw(next(iter(scenes(3, 1))), 64).save(content, "png")
    with HeldPictures(content.getvalue()) as held:
        yield held


def eventually(condition: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, why
        time.sleep(0.05)


def ask(app: Celery, method: str) -> Any:
    """What the one worker answers to `inspect`."""
    answers = getattr(app.control.inspect(timeout=5), method)()
    (answer,) = answers.values()
    return answer


def message_ids(url: str, queue: str = "captions") -> list[str]:
    with redis.Redis.from_url(url) as client:
        elements = client.lrange(f"captioner:{queue}", 0, -1)
    return [json.loads(element)["headers"]["id"] for element in reversed(elements)]


def rows(jobs: Jobs, query: str) -> int:
    engine = create_engine(jobs.settings.database_url)
    with engine.connect() as connection:
        count = connection.scalar(text(query))
    engine.dispose()
    return int(count)


def in_one_message(jobs: Jobs, held: HeldPictures, count: int) -> list[UUID]:
    """Jobs whose ids share a message, of the lane that may have all slots."""
    requests = [CaptionRequest(source=Source(f"{held.url}/{number}")) for number in range(count)]
    job_ids = [submission.job.id for submission in jobs._store.add(requests)]
    publish(jobs._app, job_ids, Lane.INTERACTIVE)
    jobs._store.mark_dispatched([job_ids])
    return job_ids


@pytest.mark.long
def test_the_pool_grows_and_shrinks(
    env: dict[str, str], jobs: Jobs, app: Celery, held: HeldPictures, tmp_path: Path
) -> None:
    env["CAPTIONER_WORKER__CONCURRENCY"] = "4"
    with running_worker(tmp_path, env) as worker:
        app.control.pool_shrink(9)
        eventually(lambda: ask(app, "stats")["pool"]["max-concurrency"] == 1, worker.log)
        submitted = [jobs.submit(f"{held.url}/{number}").id for number in range(4)]
        assert held.next_asked() == "/0"
        assert held.nobody_asks(QUIET_SECONDS)
        app.control.pool_grow(2)
        assert {held.next_asked(), held.next_asked()} == {"/1", "/2"}
        assert held.nobody_asks(QUIET_SECONDS)
        stats = ask(app, "stats")["pool"]
        assert (stats["max-concurrency"], stats["model"]) == (3, "demo")
        held.release.set()
        ended = list(jobs.wait_each(submitted, timeout_seconds=PATIENCE_SECONDS))
        assert {job.state for job in ended} == {JobState.SUCCEEDED}
        assert worker.stop() == 0
    assert "Traceback" not in worker.log


@pytest.mark.long
def test_inspect_shows_jobs_by_their_ids_alone(
    env: dict[str, str], jobs: Jobs, app: Celery, held: HeldPictures, tmp_path: Path
) -> None:
    with running_worker(tmp_path, env) as worker:
        job = jobs.submit(f"{held.url}/a.png?key=secret-token")
        held.next_asked()
        (active,) = ask(app, "active")
        assert (active["name"], active["kwargs"]) == ("captioner.caption", str(job.id))
        assert "secret-token" not in str(ask(app, "active"))
        held.release.set()
        assert worker.stop() == 0


@pytest.mark.long
def test_revoking_a_queued_message_cancels_its_job(
    env: dict[str, str], jobs: Jobs, app: Celery, held: HeldPictures, tmp_path: Path
) -> None:
    with running_worker(tmp_path, env) as worker:
        running = jobs.submit(f"{held.url}/running")
        held.next_asked()
        queued = jobs.submit(f"{held.url}/queued")
        (message_id,) = message_ids(jobs.settings.broker_url)
        app.control.revoke(message_id)
        eventually(lambda: message_id in ask(app, "revoked"), worker.log)
        assert jobs.get(queued.id).state is JobState.QUEUED
        held.release.set()
        assert jobs.wait(queued.id, timeout_seconds=60).state is JobState.CANCELED
        assert jobs.wait(running.id, timeout_seconds=60).state is JobState.SUCCEEDED
        assert worker.stop() == 0
    assert "Traceback" not in worker.log
    assert rows(jobs, "select count(*) from events") == 2


@pytest.mark.long
def test_terminating_a_message_cancels_its_running_jobs(
    env: dict[str, str], jobs: Jobs, app: Celery, held: HeldPictures, tmp_path: Path
) -> None:
    env["CAPTIONER_WORKER__CONCURRENCY"] = "3"
    with running_worker(tmp_path, env) as worker:
        submitted = in_one_message(jobs, held, 3)
        for _ in submitted:
            held.next_asked()
        (active,) = ask(app, "active")
        app.control.revoke(active["id"], terminate=True)
        for job in jobs.wait_each(submitted, timeout_seconds=PATIENCE_SECONDS):
            assert job.state is JobState.CANCELED
        held.release.set()
        other = jobs.submit(f"{held.url}/other")
        assert jobs.wait(other.id, timeout_seconds=60).state is JobState.SUCCEEDED
        assert worker.stop() == 0
    assert "Traceback" not in worker.log
    assert "NotImplementedError" not in worker.log


@pytest.mark.long
def test_sigterm_finishes_what_runs_and_hands_back_the_rest_of_a_message(
    env: dict[str, str], jobs: Jobs, held: HeldPictures, tmp_path: Path
) -> None:
    env["CAPTIONER_WORKER__CONCURRENCY"] = "2"
    with running_worker(tmp_path, env) as worker:
        submitted = in_one_message(jobs, held, 6)
        held.next_asked()
        held.next_asked()
        worker.process.send_signal(signal.SIGTERM)
        eventually(lambda: "Warm shutdown" in worker.log, worker.log)
        assert held.nobody_asks(QUIET_SECONDS)
        held.release.set()
        assert worker.process.wait(PATIENCE_SECONDS) == 0
    counts = jobs.count_by_state()
    assert (counts[JobState.SUCCEEDED], counts[JobState.QUEUED]) == (2, 4), worker.log
    assert rows(jobs, "select count(*) from workers") == 0
    with running_worker(tmp_path, env) as worker:
        ended = list(jobs.wait_each(submitted, timeout_seconds=120))
        assert {job.state for job in ended} == {JobState.SUCCEEDED}
        assert worker.stop() == 0
    assert rows(jobs, "select count(*) from events") == 6


@pytest.mark.long
@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGQUIT,),
    ],
    ids=lambda signals: "+".join(one.name for one in signals),
)
def test_asked_twice_a_worker_ends_at_once_and_leaves_nothing_behind(
    env: dict[str, str],
    jobs: Jobs,
    held: HeldPictures,
    tmp_path: Path,
    signals: tuple[signal.Signals, ...],
) -> None:
    env["CAPTIONER_WORKER__CONCURRENCY"] = "2"
    with running_worker(tmp_path, env) as worker:
        submitted = in_one_message(jobs, held, 4)
        held.next_asked()
        held.next_asked()
        for number in signals[:-1]:
            worker.process.send_signal(number)
            eventually(lambda: "Warm shutdown" in worker.log, worker.log)
        started = time.monotonic()
        worker.process.send_signal(signals[-1])
        assert worker.process.wait(PATIENCE_SECONDS) == 1
        assert time.monotonic() - started < 6
    assert "Traceback" not in worker.log
    assert "NotImplementedError" not in worker.log
    counts = jobs.count_by_state()
    assert counts[JobState.QUEUED] == 4, (counts, worker.log)
    assert rows(jobs, "select count(*) from workers") == 0
    held.release.set()
    with running_worker(tmp_path, env) as worker:
        ended = list(jobs.wait_each(submitted, timeout_seconds=120))
        assert {job.state for job in ended} == {JobState.SUCCEEDED}
        assert worker.stop() == 0
    assert rows(jobs, "select count(*) from events") == 4


def test_sigterm_during_the_load_ends_at_once_and_takes_nothing(
    env: dict[str, str], jobs: Jobs, tmp_path: Path
) -> None:
    job = jobs.submit(str(tmp_path / "a.png"))
    with running_worker(tmp_path, env, ready=False) as worker:
        eventually(lambda: "loading model" in worker.log, worker.log)
        started = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - started < 5
    assert "is resident" not in worker.log
    assert "Traceback" not in worker.log
    assert jobs.get(job.id).state is JobState.QUEUED
    assert jobs.get(job.id).attempt == 0
    assert len(message_ids(jobs.settings.broker_url)) == 1


@pytest.mark.long
def test_an_engine_that_fails_for_good_ends_the_worker_with_1(
    env: dict[str, str], jobs: Jobs, held: HeldPictures, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(Path(captioner.demo.__file__).parent / "model", model)
    env["CAPTIONER_MODEL__ID"] = str(model)
    with running_worker(tmp_path, env) as worker:
        job = jobs.submit(f"{held.url}/a")
        held.next_asked()
        (model / "model.safetensors").unlink()
        os.kill(engine_pid(worker), signal.SIGKILL)
        eventually(lambda: "the engine cannot go on" in worker.log, worker.log)
        held.release.set()
        assert worker.process.wait(PATIENCE_SECONDS) == 1
    assert jobs.get(job.id).state is JobState.QUEUED
    assert "Traceback" not in worker.log


def engine_pid(worker: Worker) -> int:
    """The worker's child whose command line says that it is the engine."""
    children = Path(f"/proc/{worker.process.pid}/task").glob("*/children")
    pids = [int(pid) for path in children for pid in path.read_text().split()]
    (engine,) = [
        pid for pid in pids if b"captioner engine" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return engine

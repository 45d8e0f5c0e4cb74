"""Producers without a database: what they push into Redis is inserted, once, and captioned."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from sqlalchemy import create_engine, text

from captioner.celery import create_app
from captioner.demo.scenes import draw, scenes
from captioner.domain import Job, JobState, Lane
from captioner.errors import ErrorCode, JobNotFoundError
from captioner.jobs import Jobs
from captioner.store import upgrade
from processes import Worker, environment, running_worker, settings_of, wait_until
from servers import PostgresServer, connect

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "submit_message.json"
SCENE = next(iter(scenes(3, 1)))
PATIENCE_SECONDS = 60


@pytest.fixture
def env(tmp_path: Path, redis_url: str, database_url: str) -> dict[str, str]:
    upgrade(database_url)
    draw(SCENE, 128).save(tmp_path / "a.png")
    return environment(tmp_path, BROKER__URL=redis_url, DATABASE__URL=database_url)


@pytest.fixture
def jobs(env: dict[str, str]) -> Iterator[Jobs]:
    with Jobs(settings_of(env)) as jobs:
        yield jobs


@pytest.fixture
def producer(redis_url: str) -> Iterator[Celery]:
    """A site's own Celery application, which knows nothing of captioner but a URL and a prefix."""
    app = Celery("site", broker=redis_url, set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": "captioner:"}
    yield app
    app.close()


def send(producer: Celery, *requests: object) -> None:
    producer.send_task(
        "captioner.submit",
        kwargs={"v": 1, "requests": list(requests)},
        queue="submissions",
        argsrepr="()",
        kwargsrepr="…",
    )


def request(source: object, **fields: object) -> dict[str, Any]:
    return {"id": str(uuid.uuid4()), "source": str(source), **fields}


def inserted(jobs: Jobs, job_id: str) -> Job:
    """Wait for a worker to insert a producer's request."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return jobs.get(job_id)
        except JobNotFoundError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def wait_for(jobs: Jobs, job_id: str) -> Job:
    """Wait for the end of a producer's job."""
    return jobs.wait(inserted(jobs, job_id).id, timeout_seconds=PATIENCE_SECONDS)


def errors(worker: Worker) -> list[str]:
    return [line for line in worker.log.splitlines() if " ERROR " in line]


@pytest.mark.long
def test_the_same_request_100_times_runs_once(
    env: dict[str, str], jobs: Jobs, producer: Celery, tmp_path: Path
) -> None:
    one = request(tmp_path / "a.png", options={"num_beams": 1}, metadata={"page": 7})
    keyed = [request(tmp_path / "a.png", client_key="page:8") for _ in range(100)]
    for again in keyed:
        send(producer, one, again)
    with running_worker(tmp_path, env) as first, running_worker(tmp_path, env) as second:
        job = wait_for(jobs, one["id"])
        assert (job.state, job.caption) == (JobState.SUCCEEDED, SCENE.caption)
        assert job.metadata == {"page": 7}
        # All messages are acknowledged by the time the workers have ended.
        last = request(tmp_path / "a.png")
        send(producer, last)
        assert wait_for(jobs, last["id"]).state is JobState.SUCCEEDED
        assert first.stop() == 0
        assert second.stop() == 0
    with create_engine(jobs.settings.database_url).connect() as connection:
        assert connection.scalar(text("select count(*) from jobs")) == 3
        assert connection.scalar(text("select max(attempt) from jobs")) == 1
        assert connection.scalar(text("select count(*) from events")) == 3
    connection.engine.dispose()
    assert not errors(first)
    assert not errors(second)
    with redis.Redis.from_url(jobs.settings.broker_url) as client:
        assert client.llen("captioner:submissions") == 0
        assert client.hlen("captioner:unacked") == 0


@pytest.mark.long
def test_a_bad_request_harms_no_other_and_fails_where_it_can_be_found(
    env: dict[str, str], jobs: Jobs, producer: Celery, tmp_path: Path
) -> None:
    picture = tmp_path / "a.png"
    good = [request(picture, lane=lane, prompt="a photography of") for lane in ("bulk", "video")]
    failed = [
        request(picture, options={"num_beams": 99}),
        request(picture, options=[1]),
        request(picture, nonsense=1),
        request(picture, lane="fast"),
        request(picture, prompt=5),
        request(picture, metadata="secret-token"),
        request(picture, client_key=""),
        request(picture, deadline="tomorrow"),
        request(picture, deadline="2999-01-01T00:00:00"),  # without its zone
    ]
    dropped: list[Any] = [
        {"source": str(picture)},
        {"id": "17", "source": str(picture)},
        {"id": None, "source": "secret-token"},
        request(""),
        request("https://h/\nsecret-token"),
        request("https://h/\ud800"),
        {"id": str(uuid.uuid4()), "source": 5},
        ["secret-token"],
        "secret-token",
        None,
        # The id of another request.
        good[0] | {"source": "https://h/other.jpg"},
    ]
    with running_worker(tmp_path, env) as worker:
        send(producer, good[0], *failed, *dropped, good[1])
        for one in good:
            job = wait_for(jobs, one["id"])
            assert job.caption == f"a photography of {SCENE.caption}", worker.log
        assert [jobs.get(one["id"]).lane for one in good] == [Lane.BULK, Lane.VIDEO]
        for one in failed:
            job = wait_for(jobs, one["id"])
            assert job.state is JobState.FAILED
            assert job.failure is not None
            assert job.failure.code is ErrorCode.INVALID_REQUEST
        assert worker.stop() == 0
    assert jobs.count_by_state()[JobState.FAILED] == len(failed)
    assert jobs.count_by_state()[JobState.SUCCEEDED] == len(good)
    lines = errors(worker)
    assert len(lines) == len(failed) + len(dropped), worker.log
    assert all("of a submission" in line for line in lines)
    assert "Traceback" not in worker.log
    assert "secret-token" not in worker.log
    for one in failed:
        assert sum(one["id"] in line for line in lines) == 1


@pytest.mark.long
def test_a_repeated_bad_request_does_not_end_a_good_one_of_the_same_id(
    env: dict[str, str], jobs: Jobs, producer: Celery, tmp_path: Path
) -> None:
    good = request(tmp_path / "a.png")
    job = jobs.submit(str(tmp_path / "a.png"))
    with redis.Redis.from_url(jobs.settings.broker_url) as client:
        client.delete("captioner:captions")  # queued, and nobody works on it
    bad = good | {"id": str(job.id), "nonsense": 1}
    with running_worker(tmp_path, env) as worker:
        send(producer, bad)
        send(producer, good)
        assert wait_for(jobs, good["id"]).state is JobState.SUCCEEDED
        assert worker.stop() == 0
    assert jobs.get(job.id).state is JobState.QUEUED


@pytest.mark.long
def test_inline_pictures_travel_and_are_never_shown(
    env: dict[str, str], jobs: Jobs, producer: Celery, tmp_path: Path
) -> None:
    content = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    inline = request(f"data:image/png;base64,{content}")
    producer.send_task(  # as a careless producer does, with Celery's own summary of the arguments
        "captioner.submit", kwargs={"v": 1, "requests": [inline]}, queue="submissions"
    )
    env["CAPTIONER_LOG__LEVEL"] = "DEBUG"
    app = create_app(jobs.settings)
    received: list[dict[str, Any]] = []

    def key(event: dict[str, Any]) -> tuple[str | None, str]:
        return event.get("uuid"), event["type"]

    with running_worker(tmp_path, env) as worker, app.connection_for_read() as connection:
        assert wait_for(jobs, inline["id"]).caption == SCENE.caption
        receiver = app.events.Receiver(connection, handlers={"*": received.append})
        again = request("https://u:secret-token@h/a.jpg?key=secret-token")
        with receiver.consumer_context() as (listening, *_):
            task_id = producer.send_task(
                "captioner.submit", kwargs={"v": 1, "requests": [again]}, queue="submissions"
            ).id
            # Workers tell of tasks a moment later: the first to be heard of may be those before it.
            while (task_id, "task-succeeded") not in map(key, received):
                listening.drain_events(timeout=PATIENCE_SECONDS)
        wait_for(jobs, again["id"])
        assert worker.stop() == 0
    app.close()
    (shown,) = [one for one in received if key(one) == (task_id, "task-received")]
    assert shown["kwargs"] == again["id"]
    assert "secret-token" not in json.dumps(received)
    ours = [line for line in worker.log.splitlines() if " DEBUG " not in line]
    assert "secret-token" not in "\n".join(ours)
    assert content[:40] not in "\n".join(ours)


def test_the_golden_message_is_accepted_as_it_lies_in_redis(
    env: dict[str, str], jobs: Jobs, tmp_path: Path
) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert json.loads(base64.b64decode(golden["element"]["body"])) == golden["body"]
    with redis.Redis.from_url(jobs.settings.broker_url) as client:
        client.lpush(golden["key"], json.dumps(golden["element"]))
    (sent,) = golden["body"][1]["requests"]
    with running_worker(tmp_path, env) as worker:
        job = inserted(jobs, sent["id"])
        assert worker.stop() == 0
    assert (job.source.uri, job.client_key) == (sent["source"], sent["client_key"])
    assert job.options.prompt == sent["prompt"]
    assert job.metadata == sent["metadata"]
    assert job.lane is Lane.BULK
    assert job.deadline_at == datetime.fromisoformat(sent["deadline"])


def test_the_example_of_the_readme_works(env: dict[str, str], jobs: Jobs, tmp_path: Path) -> None:
    readme = (ROOT / "worker" / "README.md").read_text()
    (example,) = [
        block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "send_task" in block
    ]
    example = example.replace("redis://localhost:6379/0", jobs.settings.broker_url)
    subprocess.run([sys.executable, "-c", example], check=True, timeout=PATIENCE_SECONDS)
    with running_worker(tmp_path, env) as worker:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not jobs.list() and time.monotonic() < deadline:
            time.sleep(0.1)
        (job,) = jobs.list()
        assert worker.stop() == 0
    assert job.client_key == "page:17"


@contextmanager
def away(server: PostgresServer) -> Iterator[None]:
    """The whole server."""
    server.stop()
    yield
    server.start()


@contextmanager
def without_its_table(server: PostgresServer) -> Iterator[None]:
    """As while a backup is restored."""
    with connect(server.url) as connection:
        connection.execute("ALTER TABLE jobs RENAME TO kept")
        yield
        connection.execute("ALTER TABLE kept RENAME TO jobs")


@contextmanager
def refusing_rows(server: PostgresServer) -> Iterator[None]:
    """By a constraint that is not of ours."""
    with connect(server.url) as connection:
        connection.execute("ALTER TABLE jobs ADD CONSTRAINT theirs CHECK (attempt < 0) NOT VALID")
        yield
        connection.execute("ALTER TABLE jobs DROP CONSTRAINT theirs")


@pytest.mark.long
@pytest.mark.parametrize("broken", [away, without_its_table, refusing_rows])
def test_a_submission_waits_for_a_database_that_cannot_take_it(
    tmp_path: Path,
    redis_url: str,
    broken: Callable[[PostgresServer], AbstractContextManager[None]],
) -> None:
    with PostgresServer() as server:
        upgrade(server.url)
        env = environment(tmp_path, BROKER__URL=redis_url, DATABASE__URL=server.url)
        draw(SCENE, 128).save(tmp_path / "a.png")
        producer = Celery("site", broker=redis_url, set_as_current=False)
        producer.conf.broker_transport_options = {"global_keyprefix": "captioner:"}
        one = request(f"{tmp_path / 'a.png'}?secret-token")
        with Jobs(settings_of(env)) as jobs, running_worker(tmp_path, env) as worker:
            with broken(server):
                send(producer, one)
                wait_until(lambda: "a submission waits" in worker.log, PATIENCE_SECONDS)
            inserted(jobs, one["id"])
            assert worker.stop() == 0
        producer.close()
    assert "Traceback" not in worker.log
    assert "secret-token" not in worker.log

"""Workers of the queue `events`: no model, real processes, and what they are told from outside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import pytest
from celery import Celery
from sqlalchemy import create_engine, select

from captioner.celery import DELIVER_TASK, create_app, publish
from captioner.domain import CaptionRequest, JobState, Lane
from captioner.events import DeliveryState
from captioner.jobs import Jobs
from captioner.queues import EVENTS_QUEUE
from captioner.source import Source
from captioner.store import Store, create_store_engine, upgrade
from captioner.store.models import WorkerRow
from deliverers import RECORDER, recorded
from distributions import install
from processes import captioner, environment, running_worker, settings_of, wait_until
from stored import succeeded


@pytest.fixture
def env(tmp_path: Path, redis_url: str, database_url: str) -> dict[str, str]:
    upgrade(database_url)
    install(tmp_path, "recorder", RECORDER)
    return environment(
        tmp_path,
        BROKER__URL=redis_url,
        DATABASE__URL=database_url,
        WORKER__QUEUES="events",
        WORKER__HEARTBEAT_SECONDS="1",
    ) | {"PYTHONPATH": str(tmp_path), "RECORDER": str(tmp_path)}


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    with Store(create_store_engine(database_url)) as store:
        yield store


@pytest.fixture
def app(env: Mapping[str, str]) -> Iterator[Celery]:
    app = create_app(settings_of(env))
    yield app
    app.close()


def happen(store: Store, count: int) -> None:
    succeeded(store, count)


def delivered(store: Store) -> int:
    return store.count_deliveries()[DeliveryState.DELIVERED]


def workers(database_url: str) -> list[list[str]]:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        queues = list(connection.scalars(select(WorkerRow.queues)))
    engine.dispose()
    return queues


def test_as_json_every_line_it_writes_is_an_object_to_the_end(
    env: dict[str, str], tmp_path: Path
) -> None:
    # Celery warns whoever is root, and Python this one, before anything else is said.
    warned = {"CAPTIONER_LOG__FORMAT": "json", "PYTHONWARNINGS": "default"}
    with running_worker(tmp_path, env | warned) as worker:
        assert worker.stop() == 0
    said = [json.loads(line)["message"] for line in worker.log.splitlines()]
    assert any(line.endswith(" ready.") for line in said)
    assert said[-1] == "worker: Warm shutdown (MainProcess)"


def test_it_delivers_without_a_model_and_ends_with_0(
    env: dict[str, str], store: Store, tmp_path: Path, database_url: str
) -> None:
    happen(store, 20)
    with running_worker(tmp_path, env | {"CAPTIONER_PLUGINS__ENABLED": "recorder"}) as worker:
        happen(store, 20)
        wait_until(lambda: delivered(store) == 40)
        assert workers(database_url) == [["events"]]
        mapped = Path(f"/proc/{worker.process.pid}/maps").read_text()
        assert "sqlite" in mapped or "psycopg" in mapped
        assert not [name for name in ("torch", "numpy", "PIL") if f"/{name}/" in mapped]
        assert worker.stop() == 0
    assert "loading model" not in worker.log
    assert "Traceback" not in worker.log
    assert workers(database_url) == []
    found = recorded(tmp_path)
    assert len(found) == len(set(found)) == 40


def test_a_message_makes_it_look_at_once(
    env: dict[str, str], store: Store, tmp_path: Path, app: Celery
) -> None:
    happen(store, 1)
    with running_worker(tmp_path, env | {"CAPTIONER_EVENTS__POLL_SECONDS": "60"}):
        wait_until(lambda: delivered(store) == 1)
        (delivery,) = store.list_deliveries()
        again = captioner("events", "redeliver", str(delivery.id), env=env)
        assert (again.returncode, again.stdout) == (0, "1 deliveries are made again\n")
        wait_until(lambda: len(recorded(tmp_path)) == 2)
        happen(store, 1)
        app.send_task(DELIVER_TASK, kwargs={"v": 1}, queue=EVENTS_QUEUE)
        wait_until(lambda: delivered(store) == 2)


@pytest.mark.long
def test_messages_it_cannot_use_are_dropped(
    env: dict[str, str], store: Store, tmp_path: Path, app: Celery
) -> None:
    with running_worker(tmp_path, env) as worker:
        app.send_task(DELIVER_TASK, kwargs={"v": 2}, queue=EVENTS_QUEUE)
        app.send_task(DELIVER_TASK, args=["x"], kwargs={"v": 1}, queue=EVENTS_QUEUE)
        wait_until(lambda: worker.log.count("expected v=1, and nothing else") == 2)
        # Told by hand to take what it has no model for.
        app.control.add_consumer("captions", reply=True, timeout=10)
        publish(app, [uuid4()], Lane.INTERACTIVE)
        wait_until(lambda: "this worker has no model" in worker.log)
        happen(store, 1)
        wait_until(lambda: delivered(store) == 1)
        assert worker.stop() == 0


def test_it_takes_submissions_too(
    env: dict[str, str], store: Store, tmp_path: Path, app: Celery
) -> None:
    env["CAPTIONER_WORKER__QUEUES"] = "submissions,events"
    request = {"id": str(uuid4()), "source": "/missing.png", "webhook_url": "https://e.org/hook"}
    bad = {"id": str(uuid4()), "source": "/a.png", "webhook_url": "ftp://e.org"}
    with running_worker(tmp_path, env):
        message = {"v": 1, "requests": [request, bad]}
        app.send_task("captioner.submit", kwargs=message, queue="submissions")
        wait_until(lambda: delivered(store) == 1)
    jobs = {str(job.id): job for job in store.list_jobs()}
    assert jobs[request["id"]].state is JobState.QUEUED
    assert jobs[request["id"]].webhook_url == request["webhook_url"]
    failure = jobs[bad["id"]].failure
    assert failure is not None
    assert "webhook_url must be of the form" in failure.message


@pytest.mark.long
def test_embedded_one_worker_does_everything(tmp_path: Path, red_picture: Path) -> None:
    install(tmp_path, "recorder", RECORDER)
    env = environment(tmp_path) | {"PYTHONPATH": str(tmp_path), "RECORDER": str(tmp_path)}
    with running_worker(tmp_path, env) as worker, Jobs(settings_of(env)) as jobs:
        request = CaptionRequest(source=Source(str(red_picture)))
        jobs.submit_all([request])
        job = jobs.wait(request.id, timeout_seconds=60)
        assert job.state is JobState.SUCCEEDED
        wait_until(lambda: len(recorded(tmp_path)) == 1)
        assert worker.stop() == 0


@pytest.fixture
def red_picture(tmp_path: Path) -> Path:
    from PIL import Image

    path = tmp_path / "red.png"
    Image.new("RGB", (32, 32), "red").save(path)
    return path


@pytest.mark.long
def test_people_see_deliveries_and_make_them_again(
    env: dict[str, str], store: Store, tmp_path: Path
) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        done = captioner("events", *arguments, env=env)
        assert done.returncode == code, done
        return done.stdout + done.stderr

    assert "no deliveries yet" in run("list")
    happen(store, 2)
    with running_worker(tmp_path, env | {"RECORDER_TARGETS": "a,b"}):
        wait_until(lambda: delivered(store) == 4)
    first = store.list_deliveries()[-1]
    listed = run("list")
    assert "recorder: a" in listed
    assert "4 delivered" in listed
    found = json.loads(run("list", "--json", "--state", "delivered", "--target", "b"))
    assert found["counts"] == {"pending": 0, "delivered": 4, "dead": 0}
    assert [one["target"] for one in found["deliveries"]] == ["b", "b"]
    shown = run("show", str(first.id))
    assert "attempt 1" in shown
    assert str(first.event.job_id) in shown
    (attempt,) = json.loads(run("show", str(first.id), "--json"))["log"]
    assert (attempt["number"], attempt["error"]) == (1, None)
    assert "no delivery has the id 99" in run("show", "99", code=1)

    again = json.loads(run("redeliver", str(first.id), "99", "--json", code=1))
    assert again == {"redelivered": [first.id], "left": [99]}
    assert "2 deliveries" in run("redeliver", "--event", str(first.event.id))
    assert list(store.unexpanded(10)) == [first.event.id]
    assert "0 deliveries" in run("redeliver", "--dead", "--plugin", "recorder")
    assert "0 deliveries" in run("redeliver", "--dead", "--plugin", "webhook")
    unknown = run("redeliver", "--dead", "--plugin", "captioner_webhook", code=2)
    assert unknown.startswith("captioner: --plugin 'captioner_webhook': no plugin has this name")
    assert "webhook" in unknown.partition("there are ")[2]
    assert unknown.count("\n") == 1
    assert "no event has the id 99" in run("redeliver", "--event", "99", code=1)
    assert "give either ids" in run("redeliver", code=2)
    assert "add --dead" in run("redeliver", "1", "--plugin", "recorder", code=2)

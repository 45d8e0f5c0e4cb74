"""Webhooks from the event to the receiver: real stores, a real dispatcher, real connections."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from captioner.delivering import DeliveryService
from captioner.demo.scenes import draw, random_scene
from captioner.domain import EndpointState, Job
from captioner.events import DeliveryState
from captioner.plugins import Plugins
from captioner.settings import Settings
from captioner.store import Store, create_store_engine, open_store, upgrade
from captioner.webhooks.endpoints import add_endpoint, secret_of_receiver
from captioner_webhook import Webhooks
from processes import (
    Worker,
    captioner,
    environment,
    running_worker,
    settings_of,
    wait_until,
)
from receivers import Answer, Receiver, in_turn
from stored import succeeded

JOBS = 20


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    engine = create_store_engine(database_url)
    upgrade(engine)
    with Store(engine) as store:
        yield store


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate(
        {
            "data_dir": tmp_path,
            "media": {"allowed_hosts": "127.0.0.1:*"},
            "events": {"poll_seconds": 0.05, "delays_seconds": "0.1,0.1,0.1"},
        }
    )


@contextmanager
def delivering(store: Store, settings: Settings) -> Iterator[None]:
    """The part of a worker that delivers, in this process."""
    plugins = Plugins()
    plugins.register(Webhooks(settings), "webhook")
    owner = store.register_worker("test")
    service = DeliveryService(store, plugins, owner, settings.events)
    service.start()
    try:
        yield
    finally:
        service.stop()


def end(store: Store, count: int = JOBS, **values: Any) -> list[Job]:
    return succeeded(store, count, **values)


def ended(store: Store, *states: DeliveryState) -> Callable[[], bool]:
    """Whether all deliveries have ended like this."""

    def all_ended() -> bool:
        counts = Counter(store.count_deliveries())
        return {state for state in counts if counts[state]} <= set(states) and bool(counts.total())

    return all_ended


def job_ids(receiver: Receiver) -> Counter[UUID]:
    return Counter(
        UUID(json.loads(one.body)["data"]["id"]) for one in receiver.received if one.accepted
    )


def test_a_receiver_that_fails_twice_accepts_each_event_once(
    store: Store, settings: Settings
) -> None:
    answers = in_turn(Answer(500, body=b"not yet"), Answer(302, (("Location", "/x"),)))
    with Receiver(answers, by_id=True) as receiver:
        _, secret = add_endpoint(store, settings, f"{receiver.url}/in?token=s3cret")
        jobs = end(store)
        with delivering(store, settings):
            wait_until(lambda: len(receiver.received) >= 3 * JOBS)
            wait_until(ended(store, DeliveryState.DELIVERED))
    assert job_ids(receiver) == dict.fromkeys((job.id for job in jobs), 1)
    assert len(receiver.received) == 3 * JOBS
    assert set(Counter(one.id for one in receiver.received).values()) == {3}
    assert all(one.verified_by(secret) for one in receiver.received)
    for delivery in store.list_deliveries(limit=100):
        _, attempts = store.get_delivery(delivery.id)
        assert [one.status for one in attempts] == [500, 302, 204]
        assert [one.number for one in attempts] == [1, 2, 3]
        assert attempts[0].excerpt == "not yet"
        assert attempts[0].error == "answered with HTTP status 500"
        assert attempts[2].error is None
        assert "s3cret" not in str((delivery, attempts))


def test_a_dead_receiver_holds_up_no_other_and_can_have_all_later(
    store: Store, settings: Settings
) -> None:
    back = threading.Event()
    dead = lambda *_: Answer() if back.is_set() else Answer(503)  # noqa: E731  # two lines more
    with Receiver(dead) as away, Receiver() as well:
        endpoint, _ = add_endpoint(store, settings, away.url)
        add_endpoint(store, settings, well.url)
        jobs = end(store)
        with delivering(store, settings):
            wait_until(ended(store, DeliveryState.DELIVERED, DeliveryState.DEAD))
            assert job_ids(well) == dict.fromkeys((job.id for job in jobs), 1)
            assert store.count_deliveries()[DeliveryState.DEAD] == JOBS
            assert len(away.received) == 4 * JOBS
            before = {one.id for one in away.received}
            back.set()
            again = store.redeliver_dead(1000, target=f"endpoint:{endpoint.id}")
            assert len(again) == JOBS
            wait_until(ended(store, DeliveryState.DELIVERED))
    assert job_ids(away) == dict.fromkeys((job.id for job in jobs), 1)
    assert {one.id for one in away.received} == before


def test_who_is_gone_has_nothing_more(store: Store, settings: Settings) -> None:
    with Receiver(lambda *_: Answer(410)) as gone, Receiver() as well:
        endpoint, _ = add_endpoint(store, settings, gone.url)
        add_endpoint(store, settings, well.url)
        end(store)
        with delivering(store, settings):
            wait_until(ended(store, DeliveryState.DELIVERED, DeliveryState.DEAD))
            assert store.endpoint(endpoint.id).state is EndpointState.DISABLED
            had = len(gone.received)
            assert had <= settings.events.per_target_in_flight
            end(store, 5)
            wait_until(lambda: len(well.received) == JOBS + 5)
    assert len(gone.received) == had
    assert store.count_deliveries()[DeliveryState.DEAD] == JOBS


def test_jobs_receivers_are_told_of_their_own_jobs_alone(store: Store, settings: Settings) -> None:
    with Receiver() as receiver:
        secrets = {
            path: secret_of_receiver(store, settings, f"{receiver.url}{path}")
            for path in ("/a?token=s3cret", "/b")
        }
        (first,) = end(store, 1, webhook_url=f"{receiver.url}/a?token=s3cret")
        (second,) = end(store, 1, webhook_url=f"{receiver.url}/b")
        end(store, 3)
        with delivering(store, settings):
            receiver.wait_for(2)
            wait_until(ended(store, DeliveryState.DELIVERED))
            wait_until(lambda: not store.unexpanded(1))
    assert len(receiver.received) == 2
    told = {one.path: json.loads(one.body)["data"] for one in receiver.received}
    assert told["/a?token=s3cret"]["id"] == str(first.id)
    assert told["/b"]["id"] == str(second.id)
    assert "webhook_url" not in told["/a?token=s3cret"]
    assert all(one.verified_by(secrets[one.path]) for one in receiver.received)


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        (lambda: "3600", 3_600),
        (lambda: format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True), 7_200),
        (lambda: "999999999", 86_400),
        (lambda: "Fri, 31 Dec 9999 23:59:59 GMT", 86_400),
    ],
    ids=["seconds", "date", "many-seconds", "far-date"],
)
def test_retry_after_is_waited_for_but_no_longer_than_a_day(
    store: Store, settings: Settings, asked: Callable[[], str], seconds: float
) -> None:
    with Receiver(in_turn(Answer(429, (("Retry-After", asked()),)))) as receiver:
        add_endpoint(store, settings, receiver.url)
        end(store, 1)
        with delivering(store, settings):
            wait_until(lambda: any(one.attempts for one in store.list_deliveries()))
            (delivery,) = store.list_deliveries()
    assert delivery.state is DeliveryState.PENDING
    waits = (delivery.due_at - delivery.created_at).total_seconds()
    assert seconds - 10 < waits < seconds + 60
    assert len(receiver.received) == 1


# --- Worker processes -----------------------------------------------------------------------------


@pytest.fixture
def installation(database_url: str, redis_url: str, tmp_path: Path) -> dict[str, str]:
    """The environment of the processes of one installation."""
    env = environment(
        tmp_path,
        DATABASE__URL=database_url,
        BROKER__URL=redis_url,
        EVENTS__DELAYS_SECONDS="0.2,0.2,0.2",
        EVENTS__LEASE_SECONDS="2",
        EVENTS__POLL_SECONDS="0.1",
    )
    assert captioner("db", "upgrade", env=env).returncode == 0
    return env


def events_worker(folder: Path, env: dict[str, str]) -> AbstractContextManager[Worker]:
    return running_worker(folder, env, "captioner", "worker", "--queues", "events")


@pytest.mark.long
def test_a_worker_tells_the_receivers_that_the_command_line_registered(
    installation: dict[str, str], tmp_path: Path
) -> None:
    settings = settings_of(installation)
    with Receiver(in_turn(Answer(500), Answer(503)), by_id=True) as receiver:
        url = f"{receiver.url}/in?token=s3cret"
        added = captioner("webhooks", "add", url, "--json", env=installation)
        secret = json.loads(added.stdout)["secret"]
        with open_store(settings) as store, events_worker(tmp_path, installation) as worker:
            jobs = end(store)
            wait_until(ended(store, DeliveryState.DELIVERED), 60)
            assert worker.stop() == 0
        assert job_ids(receiver) == dict.fromkeys((job.id for job in jobs), 1)
        assert len(receiver.received) == 3 * JOBS
        assert set(Counter(one.id for one in receiver.received).values()) == {3}
        assert all(one.verified_by(secret) for one in receiver.received)
    listed = captioner("webhooks", "deliveries", "--limit", "100", "--json", env=installation)
    assert Counter(one["state"] for one in json.loads(listed.stdout)) == {"delivered": JOBS}
    for text in (worker.log, listed.stdout, added.stderr):
        assert "s3cret" not in text
        assert secret not in text


@pytest.mark.long
def test_a_worker_killed_in_the_middle_of_deliveries_loses_none(
    installation: dict[str, str], tmp_path: Path
) -> None:
    settings = settings_of(installation)
    known, release = threading.Event(), threading.Event()

    def held(_: str, before: int) -> Answer:
        if not known.is_set():
            known.set()  # who has taken nothing yet is sent one at a time
        elif before == 0:
            release.wait(120)
        return Answer()

    with Receiver(held, by_id=True) as receiver, open_store(settings) as store:
        _, secret = add_endpoint(store, settings, receiver.url)
        jobs = end(store)
        with events_worker(tmp_path, installation) as worker:
            wait_until(lambda: receiver.asked.total() > settings.events.per_target_in_flight)
            wait_until(lambda: store.count_deliveries()[DeliveryState.DELIVERED] == 1)
            worker.process.kill()
            worker.process.wait()
        assert store.count_deliveries()[DeliveryState.DELIVERED] == 1
        release.set()
        with events_worker(tmp_path, installation) as worker:
            wait_until(ended(store, DeliveryState.DELIVERED), 60)
            assert worker.stop() == 0
    told = Counter(one.id for one in receiver.received)
    assert len(told) == JOBS
    assert job_ids(receiver).keys() == {job.id for job in jobs}
    # What was in hand when it was killed came twice, under the same id.
    assert Counter(told.values()) == {
        2: settings.events.per_target_in_flight,
        1: JOBS - settings.events.per_target_in_flight,
    }
    assert all(one.verified_by(secret) for one in receiver.received)


@pytest.mark.long
def test_the_receiver_of_a_job_has_its_captions(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """A model, two workers, Redis, PostgreSQL, and the command line."""
    env = environment(tmp_path, DATABASE__URL=postgres_url, BROKER__URL=redis_url)
    assert captioner("db", "upgrade", env=env).returncode == 0
    scene = tmp_path / "scene.png"
    draw(random_scene(random.Random(7))).save(scene)
    with (
        Receiver() as receiver,
        running_worker(tmp_path, env),
        events_worker(tmp_path, env) as worker,
    ):
        url = f"{receiver.url}/done?token=s3cret"
        told = captioner("webhooks", "secret", url, "--json", env=env)
        secret = json.loads(told.stdout)["secret"]
        submitted = captioner(
            *("submit", str(scene), "--webhook-url", url, "--wait", "--json"), env=env
        )
        (job,) = json.loads(submitted.stdout)
        receiver.wait_for(1)
    (request,) = receiver.received
    assert request.path == "/done?token=s3cret"
    assert request.verified_by(secret)
    body = json.loads(request.body)
    assert body["type"] == "caption.succeeded"
    assert body["data"]["captions"] == job["captions"]
    assert body["data"]["captions"][0]["text"]
    for text in (submitted.stdout, submitted.stderr, worker.log):
        assert "s3cret" not in text

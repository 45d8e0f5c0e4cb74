"""The sweeper on real brokers and databases, with a clock of its own: hours pass in seconds."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from base64 import b64decode
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
import redis

from captioner.celery import MAX_JOBS_PER_MESSAGE, create_app, publish
from captioner.deliveries import Expansion
from captioner.domain import JobState, Lane
from captioner.errors import ErrorCode, StoreUnavailableError
from captioner.republishing import MOST_OVERTAKEN, REPUBLISH_AFTER, queue_lengths
from captioner.settings import Settings
from captioner.store import open_store, upgrade
from captioner.sweeper import Sweeper
from processes import environment, settings_of
from servers import RedisServer
from stored import BROKEN, NOON, again, claimed, events, nobody_listens, submit, success

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from captioner.celery import CaptionerApp

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
PUBLISHED, LOST = "jobs published", "jobs of lost messages published"
BACKLOG = 5_000


class House:
    """A database, a broker, and a sweeper between them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.app: CaptionerApp = create_app(settings)
        self.store = open_store(settings)
        self.sweeper = Sweeper(self.app, self.store, "w")

    def close(self) -> None:
        self.app.close()
        self.store.close()

    def submit(self, count: int, lane: Lane = Lane.INTERACTIVE) -> list[UUID]:
        """Rows, messages, stamps of noon: in chunks in the bulk lane, else one by one."""
        ids = submit(self.store, count, lane=lane)
        size = MAX_JOBS_PER_MESSAGE if lane is Lane.BULK else 1
        messages = [ids[first : first + size] for first in range(0, count, size)]
        for message in messages:
            publish(self.app, message, lane)
        self.store.mark_dispatched(messages, now=NOON)
        return ids

    def messages(self) -> list[list[UUID]]:
        """The job ids of every message that waits, in any queue."""
        url = self.settings.broker_url
        if url.startswith("redis"):
            with redis.Redis.from_url(url) as client:
                keys = [key for key in client.scan_iter() if client.type(key) == b"list"]
                texts = [text for key in keys for text in client.lrange(key, 0, -1)]
        else:
            with contextlib.closing(sqlite3.connect(url.removeprefix("sqla+sqlite:///"))) as file:
                query = "SELECT payload FROM kombu_message WHERE visible"
                texts = [row[0] for row in file.execute(query)]
        bodies = [json.loads(b64decode(json.loads(text)["body"])) for text in texts]
        return [[UUID(one) for one in body[1]["job_ids"]] for body in bodies]

    def lose_messages(self) -> None:
        """All of them, as FLUSHALL would."""
        url = self.settings.broker_url
        if url.startswith("redis"):
            with redis.Redis.from_url(url) as client:
                client.flushdb()
            return
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqla+sqlite:///"))) as file, file:
            file.execute("DELETE FROM kombu_message")


def opened(tmp_path: Path, broker: str, database: str, **settings: str) -> House:
    upgrade(database)
    env = environment(tmp_path, BROKER__URL=broker, DATABASE__URL=database, **settings)
    return House(settings_of(env))


@pytest.fixture(params=["redis+postgresql", "embedded"])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Broker and database of a production installation, and of one without servers."""
    if request.param == "embedded":
        return embedded(tmp_path)
    return request.getfixturevalue("redis_url"), request.getfixturevalue("postgres_url")


def embedded(folder: Path) -> tuple[str, str]:
    return f"sqla+sqlite:///{folder / 'broker.sqlite3'}", f"sqlite:///{folder / 'jobs.sqlite3'}"


@pytest.fixture
def house(urls: tuple[str, str], tmp_path: Path) -> Iterator[House]:
    house = opened(tmp_path, *urls)
    yield house
    house.close()


# Messages


@pytest.mark.long
@pytest.mark.parametrize("lane", [Lane.INTERACTIVE, Lane.BULK], ids=["singles", "chunks"])
def test_an_honest_backlog_is_never_published_twice(house: House, lane: Lane) -> None:
    ids = house.submit(BACKLOG, lane)
    messages = BACKLOG if lane is Lane.INTERACTIVE else -(-BACKLOG // 64)
    assert queue_lengths(house.app)[lane] == messages
    done: Counter[str] = Counter()
    for minute in range(61):
        done += house.sweeper.sweep(NOON + minute * MINUTE)
        house.sweeper.sweep(NOON + minute * MINUTE + 10 * SECOND)
    assert done == Counter()
    waiting = Counter(job_id for message in house.messages() for job_id in message)
    assert waiting == Counter(dict.fromkeys(ids, 1))


@pytest.mark.long
@pytest.mark.parametrize("lane", [Lane.INTERACTIVE, Lane.BULK], ids=["singles", "chunks"])
def test_a_lost_list_is_published_again_once_in_ten_minutes(house: House, lane: Lane) -> None:
    ids = house.submit(BACKLOG, lane)
    house.lose_messages()
    published = 0
    for second in range(0, 590, 10):
        published += house.sweeper.sweep(NOON + second * SECOND)[LOST]
    assert published == 0
    for second in range(610, 1_190, 10):
        published += house.sweeper.sweep(NOON + second * SECOND)[LOST]
    assert published == BACKLOG
    waiting = Counter(job_id for message in house.messages() for job_id in message)
    assert waiting == Counter(dict.fromkeys(ids, 1))
    # Lost once more, they come once more.
    house.lose_messages()
    for second in range(1_250, 1_350, 10):
        published += house.sweeper.sweep(NOON + second * SECOND)[LOST]
    assert published == 2 * BACKLOG


def test_only_as_many_as_are_missing_and_those_the_oldest(house: House) -> None:
    first, second = house.submit(10), house.submit(10)
    house.store.mark_dispatched([[one] for one in second], now=NOON + SECOND)
    for message in house.messages():
        assert len(message) == 1
    house.lose_messages()
    for job_id in first[:4] + second:
        publish(house.app, [job_id], Lane.INTERACTIVE)
    later = NOON + REPUBLISH_AFTER + MINUTE
    assert house.sweeper.sweep(later) == Counter()
    assert house.sweeper.sweep(later + 10 * SECOND) == {LOST: 6}
    # Counting cannot tell which of the oldest are missing; but no more than that are sent again.
    counts = Counter(job_id for message in house.messages() for job_id in message)
    assert counts.total() == 20
    assert all(counts[one] == 1 for one in second)
    assert house.sweeper.sweep(later + 20 * SECOND) == Counter()
    assert house.sweeper.sweep(later + 30 * SECOND) == Counter()


def test_lost_messages_are_found_in_a_lane_that_never_rests(house: House) -> None:
    """Its list is as long at each look, and as much is done between two: the count finds none."""
    lost = house.submit(3)
    house.lose_messages()
    house.store.register_worker("other", worker_id="other", now=NOON)
    waiting: list[UUID] = []
    found: Counter[str] = Counter()
    for look in range(100):
        now = NOON + look * 10 * SECOND
        done, waiting = waiting, submit(house.store, 4)
        for one in waiting:
            publish(house.app, [one], Lane.INTERACTIVE)
        house.store.mark_dispatched([[one] for one in waiting], now=now)
        house.store.heartbeat("other", now=now)
        at_work = house.store.claim(done, "other", now=now)
        took = house.sweeper.sweep(now)
        if now - NOON <= REPUBLISH_AFTER:
            assert took == Counter()
        found += took
        house.store.record([success(job) for job in at_work], now=now)
        house.lose_messages()  # taken from the list
        for one in waiting:
            publish(house.app, [one], Lane.INTERACTIVE)
    assert found == {LOST: len(lost)}


def test_what_others_overtook_is_sent_again_little_by_little(house: House) -> None:
    """One that was sent again though it was not lost is at work before its time: none is lost."""
    first, *others = house.submit(100)
    now = NOON + HOUR
    house.store.mark_dispatched([[first]], now=now)
    house.store.register_worker("other", worker_id="other", now=now)
    house.store.claim([first], "other", now=now)
    assert house.sweeper.sweep(now) == Counter()
    assert house.sweeper.sweep(now + SECOND) == {LOST: MOST_OVERTAKEN}
    again_ = Counter(job_id for message in house.messages() for job_id in message)
    assert Counter(again_[one] for one in others) == {2: MOST_OVERTAKEN, 1: 99 - MOST_OVERTAKEN}


def test_a_message_in_a_workers_hand_is_not_lost(house: House) -> None:
    """Each round another one is between the list and its claim, as in a worker at work."""
    ids = house.submit(30)
    later = NOON + HOUR
    house.lose_messages()
    for number, job_id in enumerate(ids):
        house.lose_messages()
        for one in ids[number + 1 :]:
            publish(house.app, [one], Lane.INTERACTIVE)
        assert house.sweeper.sweep(later + number * SECOND) == Counter()
        house.store.claim([job_id], "other", now=later)
        house.store.register_worker("other", worker_id="other", now=later + HOUR)


def test_videos_are_published_one_by_one(house: House) -> None:
    submit(house.store, 3, lane=Lane.VIDEO)
    assert house.sweeper.sweep(NOON + MINUTE) == {PUBLISHED: 3}
    assert [len(message) for message in house.messages()] == [1, 1, 1]
    assert queue_lengths(house.app) == {Lane.INTERACTIVE: 0, Lane.BULK: 0, Lane.VIDEO: 3}


def test_what_was_never_published_and_what_is_due_again_is(house: House) -> None:
    fresh = submit(house.store, 2)
    retried, waiting, back = claimed(house.store, 3)
    house.store.requeue(
        [
            again(retried, failure=BROKEN, not_before=NOON + 20 * SECOND),
            again(waiting, failure=BROKEN, not_before=NOON + MINUTE),
            again(back),
        ]
    )
    assert house.sweeper.sweep(NOON + 9 * SECOND) == Counter()  # may still be publishing
    assert house.sweeper.sweep(NOON + 11 * SECOND) == {PUBLISHED: 3}
    assert house.sweeper.sweep(NOON + 21 * SECOND) == {PUBLISHED: 1}
    assert house.sweeper.sweep(NOON + 31 * SECOND) == Counter()
    assert {one for message in house.messages() for one in message} == {
        *fresh,
        retried.id,
        back.id,
    }
    # Claimable at once, also by who was told the time a moment before.
    assert [job.id for job in house.store.claim([retried.id], "v", now=NOON)] == [retried.id]


# The rest of a round


def test_a_round_takes_back_gives_up_expires_and_deletes(
    urls: tuple[str, str], tmp_path: Path
) -> None:
    house = opened(tmp_path, *urls, RETRY__MAX_LOSSES="2", RETENTION__FINISHED_DAYS="7")
    (poison,) = claimed(house.store, owner="gone")
    assert house.store.expire_workers(timedelta(0), 1, max_losses=2, now=NOON).requeued == 1
    owner = house.store.register_worker("dead", now=NOON)
    house.store.claim([poison.id], owner, now=NOON)
    (old, lost) = claimed(house.store, 2, owner=owner)
    house.store.record([success(old)], now=NOON - timedelta(days=7))
    nobody_listens(house.store)
    (late,) = submit(house.store, deadline_at=NOON + 30 * SECOND)
    assert house.sweeper.sweep(NOON + 46 * SECOND) == {
        "workers expired": 1,
        "jobs taken back": 1,
        "jobs given up": 1,
        "jobs expired": 1,
        PUBLISHED: 1,
        "old jobs deleted": 1,
    }
    found = {job.id: job for job in house.store.get_many([old.id, lost.id, poison.id, late])}
    assert old.id not in found
    assert found[lost.id].state is JobState.QUEUED
    failure = found[poison.id].failure
    assert failure is not None
    assert failure.code is ErrorCode.WORKER_LOST
    assert found[late].state is JobState.EXPIRED
    assert sorted(events(house.store)) == sorted(
        [(poison.id, "caption.failed"), (late, "caption.expired")]
    )
    house.close()


def test_jobs_that_must_stay_are_passed_over_a_few_a_round(
    urls: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captioner.sweeper.BATCH", 2)
    monkeypatch.setattr("captioner.sweeper.MOST_BATCHES", 2)
    house = opened(tmp_path, *urls, RETENTION__FINISHED_DAYS="7")
    # Of one moment, as those that are recorded together.
    waiting = claimed(house.store, 5)
    house.store.record([success(job) for job in waiting], now=NOON - timedelta(days=8))
    untold = house.store.unexpanded(10)
    (over,) = claimed(house.store)
    house.store.record([success(over)], now=NOON - timedelta(days=7.5))
    house.store.expand(
        [Expansion(one, ()) for one in house.store.unexpanded(10) if one not in untold]
    )
    assert house.sweeper.sweep(NOON) == Counter()
    assert house.sweeper.sweep(NOON) == {"old jobs deleted": 1}
    nobody_listens(house.store)
    assert house.sweeper.sweep(NOON) == {"old jobs deleted": 4}
    assert house.sweeper.sweep(NOON) == {"old jobs deleted": 1}
    assert house.store.list_jobs() == []
    house.close()


def test_without_a_word_about_retention_nothing_is_deleted(house: House) -> None:
    (job,) = claimed(house.store)
    house.store.record([success(job)], now=NOON)
    assert house.sweeper.sweep(NOON + timedelta(days=3_650)) == Counter()
    assert house.store.get(job.id).state is JobState.SUCCEEDED


def test_delivered_messages_are_deleted_from_the_embedded_brokers_file(tmp_path: Path) -> None:
    broker, database = embedded(tmp_path)
    house = opened(tmp_path, broker, database)
    assert house.sweeper.sweep(NOON) == Counter()  # before anybody published
    house.submit(5)
    with contextlib.closing(sqlite3.connect(tmp_path / "broker.sqlite3")) as file, file:
        file.execute("UPDATE kombu_message SET visible = 0 WHERE id <= 3")
    assert house.sweeper.sweep(NOON) == {"delivered messages deleted": 3}
    assert len(house.messages()) == 2
    house.close()


# Who sweeps


def test_one_is_elected_and_another_takes_over(house: House) -> None:
    other = Sweeper(house.app, house.store, "v")
    submit(house.store, 1)
    assert house.sweeper.sweep(NOON) == Counter()
    assert other.sweep(NOON + 44 * SECOND) == Counter()
    assert house.sweeper.sweep(NOON + 44 * SECOND) == {PUBLISHED: 1}  # and has renewed it
    submit(house.store, 1)
    assert other.sweep(NOON + 88 * SECOND) == Counter()
    assert other.sweep(NOON + 89 * SECOND) == {PUBLISHED: 1}  # the first was not heard of
    submit(house.store, 1)
    assert house.sweeper.sweep(NOON + 100 * SECOND) == Counter()
    other.release()
    assert house.sweeper.sweep(NOON + 100 * SECOND) == {PUBLISHED: 1}


def test_a_step_that_fails_stops_no_other(
    tmp_path: Path, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer() as server:
        house = opened(tmp_path, server.url, postgres_url, RETENTION__FINISHED_DAYS="1")
        (job,) = claimed(house.store)
        house.store.record([success(job)], now=NOON)
        nobody_listens(house.store)
        submit(house.store, 2)
        server.stop()
        later = NOON + timedelta(days=2)
        assert house.sweeper.sweep(later) == {"old jobs deleted": 1}
        assert "the broker cannot be reached" in caplog.text
        assert "Traceback" not in caplog.text
        server.start()
        assert house.sweeper.sweep(later) == {PUBLISHED: 2}
        house.close()


def test_a_step_that_always_fails_keeps_no_dead_workers_jobs(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one does that takes longer than the server lets it; the database is there."""
    owner = house.store.register_worker("dead", now=NOON)
    claimed(house.store, owner=owner)

    def refused(*_: object, **__: object) -> list[UUID]:
        raise StoreUnavailableError("database … cannot be used: canceling statement")

    monkeypatch.setattr(house.store, "expire_overdue", refused)
    done: Counter[str] = Counter()
    for seconds in range(0, 120, 10):
        done += house.sweeper.sweep(NOON + seconds * SECOND)
    assert done == {"workers expired": 1, "jobs taken back": 1, PUBLISHED: 1}
    assert "a step of it later: database … cannot be used: canceling statement" in caplog.text


def test_who_did_not_sweep_for_long_gives_the_living_time_to_say_so(house: House) -> None:
    """All were paused, as when their machine sleeps, or the clock was set."""
    assert house.sweeper.sweep(NOON) == Counter()
    claimed(house.store, 1)
    assert house.sweeper.sweep(NOON + HOUR) == Counter()
    for seconds in (20, 40):
        assert house.sweeper.sweep(NOON + HOUR + seconds * SECOND) == Counter()
    assert house.sweeper.sweep(NOON + HOUR + 46 * SECOND)["jobs taken back"] == 1


def test_after_the_database_was_away_the_living_have_time_to_say_so(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    owner = house.store.register_worker("alive", now=NOON)
    (job,) = claimed(house.store, owner=owner)

    def away(*_: object, **__: object) -> bool:
        raise StoreUnavailableError("database … cannot be used: away")

    with monkeypatch.context() as patch:
        patch.setattr(house.store, "try_acquire", away)
        assert house.sweeper.sweep(NOON + HOUR) == Counter()
    assert "will be tried again: database … cannot be used: away" in caplog.text
    assert house.sweeper.sweep(NOON + HOUR + SECOND) == Counter()
    assert house.store.heartbeat(owner, now=NOON + HOUR + 2 * SECOND)
    assert house.sweeper.sweep(NOON + HOUR + 46 * SECOND) == Counter()
    assert house.store.get(job.id).state is JobState.PROCESSING
    assert house.sweeper.sweep(NOON + HOUR + 50 * SECOND)["jobs taken back"] == 1

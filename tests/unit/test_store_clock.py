"""What time it is, by a server's clock that is asked now and then."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import pytest

from captioner.errors import StoreUnavailableError
from captioner.store import Store, create_store_engine, upgrade
from captioner.store.clock import FRESH_SECONDS, ServerClock

NOON = datetime(2126, 7, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


class Server:
    """A server a hundred years ahead of this machine, which takes its time to answer."""

    def __init__(self) -> None:
        self.seconds = 5_000.0
        self.takes_seconds = 0.0
        self.asked = 0
        self.error: StoreUnavailableError | None = None
        self.clock = ServerClock(self.answer, clock=lambda: self.seconds)

    def answer(self) -> datetime:
        self.asked += 1
        self.seconds += self.takes_seconds / 2
        said = self.time
        self.seconds += self.takes_seconds / 2
        if self.error:
            raise self.error
        return said.astimezone(timezone(timedelta(hours=2)))

    @property
    def time(self) -> datetime:
        return NOON + (self.seconds - 5_000) * SECOND


@pytest.fixture
def server() -> Server:
    return Server()


def test_it_is_asked_at_first_and_then_only_by_who_may_wait(server: Server) -> None:
    assert server.clock.now() == NOON
    assert server.clock.now().tzinfo is UTC
    for _ in range(3):
        server.seconds += FRESH_SECONDS
        assert server.clock.now() == server.time
    assert server.asked == 1
    assert server.clock.asked_now() == server.time
    assert server.asked == 2


def test_it_is_asked_again_when_the_answer_is_old(server: Server) -> None:
    for seconds, asked in ((0, 1), (FRESH_SECONDS - 1, 1), (1, 2), (FRESH_SECONDS - 1, 2)):
        server.seconds += seconds
        assert server.clock.asked_now() == server.time
        assert server.asked == asked


def test_an_answer_is_of_the_middle_of_its_time(server: Server) -> None:
    server.takes_seconds = 2.0
    assert server.clock.asked_now() == server.time == NOON + 2 * SECOND


def test_while_the_server_is_away_the_last_answer_is_counted_on(server: Server) -> None:
    server.clock.now()
    server.error = StoreUnavailableError("away")
    server.seconds += 3_600
    assert server.clock.asked_now() == server.time == NOON + 3_600 * SECOND
    server.error = None
    server.asked = 0
    assert server.clock.asked_now() == server.time
    assert server.asked == 1  # at once: nothing was learned before


def test_of_a_server_that_was_never_reached_nothing_is_known(server: Server) -> None:
    server.error = StoreUnavailableError("away")
    for tell in (server.clock.now, server.clock.asked_now):
        assert abs(tell() - datetime.now(UTC)) < 60 * SECOND
    server.error = None
    assert server.clock.now() == server.time


def test_other_errors_are_no_secret() -> None:
    def fail() -> datetime:
        raise ZeroDivisionError

    clock = ServerClock(fail)
    for _ in range(2):  # the second would wait for ever for a lock that the first has kept
        with pytest.raises(ZeroDivisionError):
            clock.asked_now()


def test_while_one_thread_asks_the_others_count_on() -> None:
    answers, asking = threading.Event(), threading.Event()
    answers.set()

    def answer() -> datetime:
        asking.set()
        assert answers.wait(30)
        return NOON

    seconds = 0.0
    clock = ServerClock(answer, clock=lambda: seconds)
    clock.now()
    answers.clear()
    asking.clear()
    seconds = FRESH_SECONDS
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(clock.asked_now)
        assert asking.wait(30)
        assert clock.asked_now() == clock.now() == NOON + FRESH_SECONDS * SECOND
        answers.set()
        assert first.result(30) == NOON


def test_a_store_tells_the_time(database_url: str) -> None:
    upgrade(database_url)
    with Store(create_store_engine(database_url)) as store:
        before = datetime.now(UTC)
        assert before - SECOND < store.now() < datetime.now(UTC) + SECOND

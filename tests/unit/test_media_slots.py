"""Slots by lane, and how a slow host holds up nobody but itself."""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from captioner.domain import Lane
from captioner.errors import HostBusyError
from captioner.media import HostSlots, hosts
from captioner.media.slots import Slots
from captioner.source import Source

SLOW = Source("https://slow.example/picture.jpg")
FAST = Source("https://fast.example/picture.jpg")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "PATIENCE_SECONDS", 0.02)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def waiting(slots: Slots, lane: Lane, count: int) -> bool:
    with slots._lock:
        return len(slots._waiting[lane]) == count


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        pause.wait(0.001)


# --- Slots ----------------------------------------------------------------------------------------


def test_there_are_as_many_as_were_asked_for() -> None:
    slots = Slots(2)
    assert slots.acquire(Lane.BULK, 0)
    assert slots.acquire(Lane.INTERACTIVE, 0)
    assert not slots.acquire(Lane.INTERACTIVE, 0)
    assert not slots.acquire(Lane.BULK, 0.01)
    slots.release(Lane.BULK)
    assert slots.acquire(Lane.INTERACTIVE, 0)


def held(slots: Slots, lane: Lane) -> int:
    """As many as can be had."""
    count = 0
    while slots.acquire(lane, 0):
        count += 1
    return count


def test_a_lane_leaves_some_to_the_others() -> None:
    slots = Slots(8)
    assert held(slots, Lane.VIDEO) == 2
    assert held(slots, Lane.BULK) == 6
    slots = Slots(8)
    assert held(slots, Lane.BULK) == 6
    assert held(slots, Lane.INTERACTIVE) == 2
    slots.release(Lane.INTERACTIVE)
    assert held(slots, Lane.BULK) == 0
    assert held(slots, Lane.VIDEO) == 1
    assert [held(Slots(1), lane) for lane in Lane] == [1, 1, 1]
    assert [held(Slots(4, {}), lane) for lane in Lane] == [4, 4, 4]


def test_the_interactive_go_first_and_each_lane_in_its_order(threads: ThreadPoolExecutor) -> None:
    slots = Slots(1)
    slots.acquire(Lane.BULK)
    order: list[str] = []

    def job(lane: Lane, name: str) -> None:
        assert slots.acquire(lane, 30)
        order.append(name)
        slots.release(lane)

    done: list[Future[None]] = []
    for number in range(3):
        done.append(threads.submit(job, Lane.BULK, f"bulk {number}"))
        until(functools.partial(waiting, slots, Lane.BULK, number + 1))
    for number in range(2):
        done.append(threads.submit(job, Lane.INTERACTIVE, f"interactive {number}"))
        until(functools.partial(waiting, slots, Lane.INTERACTIVE, number + 1))
    slots.release(Lane.BULK)
    for future in done:
        future.result(30)
    assert order == ["interactive 0", "interactive 1", "bulk 0", "bulk 1", "bulk 2"]


def test_a_turn_that_comes_just_when_patience_ends_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots = Slots(1)
    slots.acquire(Lane.BULK)

    class Late(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            slots.release(Lane.BULK)
            return False

    monkeypatch.setattr(threading, "Event", Late)
    assert slots.acquire(Lane.INTERACTIVE, 1)
    assert held(slots, Lane.INTERACTIVE) == 0


def test_none_is_lost_when_many_give_up_at_the_moment_of_their_turn(
    threads: ThreadPoolExecutor,
) -> None:
    slots = Slots(3)
    inside: dict[Lane, int] = dict.fromkeys(Lane, 0)
    lock = threading.Lock()

    def job(number: int) -> bool:
        lane = list(Lane)[number % 3]
        if not slots.acquire(lane, (number % 5) * 0.0002):
            return False
        with lock:
            inside[lane] += 1
            assert sum(inside.values()) <= 3
            assert inside[Lane.BULK] <= 2
            assert inside[Lane.VIDEO] <= 1
        with lock:
            inside[lane] -= 1
        slots.release(lane)
        return True

    results = list(threads.map(job, range(5000)))
    assert True in results
    assert [slots.acquire(Lane.INTERACTIVE, 0) for _ in range(4)] == [True, True, True, False]


# --- Hosts ----------------------------------------------------------------------------------------


def test_a_host_has_so_many_downloads_and_no_more(impatient: None) -> None:
    slots = HostSlots(2, 100)
    with slots.hold(SLOW, Lane.INTERACTIVE), slots.hold(SLOW, Lane.INTERACTIVE):
        with pytest.raises(HostBusyError, match=r"slow\.example.*CONNECTIONS_PER_HOST is 2"):
            slots.hold(SLOW, Lane.INTERACTIVE).__enter__()
        with slots.hold(FAST, Lane.INTERACTIVE):
            pass
    with slots.hold(SLOW, Lane.INTERACTIVE):
        pass


@pytest.mark.parametrize(
    "uri", ["/a.png", "file:///a.png", "data:,x", "http://[::", "https://", "s3://bucket/key"]
)
def test_what_is_not_downloaded_needs_no_slot(uri: str) -> None:
    slots = HostSlots(1, 1)
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(slots.hold(Source(uri), Lane.BULK))


def test_one_host_by_many_names_of_the_same_case_is_one(impatient: None) -> None:
    slots = HostSlots(1, 100)
    with slots.hold(Source("https://slow.example:8443/a?b"), Lane.INTERACTIVE):
        for uri in ("http://SLOW.example/", "HTTPS://user@slow.example"):
            with pytest.raises(HostBusyError):
                slots.hold(Source(uri), Lane.INTERACTIVE).__enter__()


@pytest.mark.parametrize(
    "spelling",
    ["http://0x7f.1:81/", "http://2130706433/", "http://127.0.0.1./", "http://[::ffff:7f00:1]/"],
)
def test_one_address_by_many_spellings_is_one(impatient: None, spelling: str) -> None:
    slots = HostSlots(1, 100)
    with (
        slots.hold(Source("https://127.0.0.1/a"), Lane.INTERACTIVE),
        pytest.raises(HostBusyError),
        slots.hold(Source(spelling), Lane.INTERACTIVE),
    ):
        pass


def test_bulk_leaves_a_quarter_of_every_host_and_of_all(impatient: None) -> None:
    slots = HostSlots(4, 8)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(slots.hold(SLOW, Lane.BULK))
        with pytest.raises(HostBusyError, match="slow"):
            slots.hold(SLOW, Lane.BULK).__enter__()
        stack.enter_context(slots.hold(SLOW, Lane.INTERACTIVE))
        for _ in range(3):
            stack.enter_context(slots.hold(FAST, Lane.BULK))
        with pytest.raises(HostBusyError, match="bulk jobs have"):
            slots.hold(Source("http://third.example"), Lane.BULK).__enter__()
        stack.enter_context(slots.hold(FAST, Lane.INTERACTIVE))
    with slots.hold(SLOW, Lane.BULK):
        pass


def test_who_is_turned_away_by_a_slow_host_is_told_a_turn_of_his_own() -> None:
    clock = Clock()
    slots = HostSlots(2, 100, clock=clock)
    with slots.hold(SLOW, Lane.INTERACTIVE), slots.hold(SLOW, Lane.INTERACTIVE):
        clock.now += 10  # two downloads of 10 s: a turn every 5 s
        times = []
        for _ in range(14):
            with pytest.raises(HostBusyError) as busy:
                slots.hold(SLOW, Lane.INTERACTIVE).__enter__()
            times.append(busy.value.retry_after_seconds)
    assert times[:4] == [5, 10, 15, 20]
    assert times[11:] == [60, 60, 60]


def test_a_straggler_does_not_make_a_host_slow(threads: ThreadPoolExecutor) -> None:
    clock = Clock()
    slots = HostSlots(2, 100, clock=clock)
    with slots.hold(SLOW, Lane.INTERACTIVE):
        clock.now += 30
        for _ in range(2):
            with slots.hold(SLOW, Lane.INTERACTIVE):
                clock.now += 0.05
        with slots.hold(SLOW, Lane.INTERACTIVE):
            job = threads.submit(lambda: slots.hold(SLOW, Lane.INTERACTIVE).__enter__())
            host = slots._hosts["slow.example"]
            until(lambda: waiting(host._slots, Lane.INTERACTIVE, 1))  # it waits, and is not refused
        job.result(30)


def test_who_has_waited_waits_no_more(threads: ThreadPoolExecutor) -> None:
    clock = Clock()
    slots = HostSlots(1, 100, clock=clock)

    def download() -> None:
        with slots.hold(SLOW, Lane.INTERACTIVE):
            clock.now += 0.1  # so that about ten may wait at once

    with slots._host("slow.example") as host:  # so that it is not forgotten in between
        for _ in range(30):
            with slots.hold(SLOW, Lane.INTERACTIVE):
                clock.now += 0.1
                job = threads.submit(download)
                until(lambda: waiting(host._slots, Lane.INTERACTIVE, 1))
            job.result(30)


def test_hosts_are_forgotten() -> None:
    slots = HostSlots(2, 100)
    for number in range(100):
        with slots.hold(Source(f"https://{number}.example"), Lane.BULK):
            assert len(slots._hosts) == 1
    assert not slots._hosts


def test_a_slow_host_with_500_jobs_starves_no_other(threads: ThreadPoolExecutor) -> None:
    """16 threads, a queue in order of arrival, and a host that answers nobody until the end."""
    slots = HostSlots(8, 100)
    answers = threading.Event()
    fast_done = threading.Event()
    queue = deque([SLOW] * 500 + [FAST] * 100)
    given_back: deque[Source] = deque()
    delays: list[float] = []
    fetched: deque[Source] = deque()

    def work() -> None:
        while True:
            try:
                source = queue.popleft()
            except IndexError:
                return
            try:
                with slots.hold(source, Lane.INTERACTIVE):
                    if source is SLOW:
                        assert answers.wait(60)
                    fetched.append(source)
            except HostBusyError as busy:
                given_back.append(source)
                delays.append(busy.retry_after_seconds)
            if fetched.count(FAST) == 100:
                fast_done.set()

    running = [threads.submit(work) for _ in range(16)]
    assert fast_done.wait(60)
    assert fetched.count(SLOW) == 0
    answers.set()
    for future in running:
        future.result(60)
    assert 8 <= fetched.count(SLOW) <= 16  # at the end, those too who were waiting just then
    assert fetched.count(SLOW) + given_back.count(SLOW) == 500
    assert given_back.count(FAST) == 0
    assert min(delays) >= hosts.SOONEST_SECONDS

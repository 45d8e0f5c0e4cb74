"""Calls combined: in which company, for how long, and whose error is whose."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from captioner.store.combining import Combiner

PATIENCE_SECONDS = 30


class Statement:
    """Doubles numbers, waiting for leave each time; remembers what it was given."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.threads: list[str] = []
        self.begun = threading.Semaphore(0)
        self.leave = threading.Semaphore(0 if held else 10_000)

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.threads.append(threading.current_thread().name)
        self.begun.release()
        assert self.leave.acquire(timeout=PATIENCE_SECONDS)
        for item in items:
            if item < 0:
                raise ValueError(f"bad {item}") if item > -100 else OSError("away")
        return [item * 2 for item in items]


def combiner(
    statement: Callable[[Sequence[int]], Sequence[int]],
    *,
    linger_seconds: float = 0.0,
    expects: Callable[[], bool] = lambda: False,
    most: int = 256,
) -> Combiner[int, int]:
    return Combiner(
        statement,
        linger_seconds=linger_seconds,
        expects=expects,
        at_fault=lambda error: isinstance(error, ValueError),
        most=most,
    )


def waiting(combined: Combiner[int, int], count: int) -> None:
    """Until that many callers wait; there is no event for that, their arrival being private."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(combined._waiting) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def together(
    statement: Statement, combined: Combiner[int, int], items: Sequence[int]
) -> list[Future[int]]:
    """Call with -0 first and with all items while that is being handled: they come together."""
    pool = ThreadPoolExecutor(len(items) + 1)
    first = pool.submit(combined, 0)
    assert statement.begun.acquire(timeout=PATIENCE_SECONDS)
    rest = []
    for count, item in enumerate(items, 1):
        rest.append(pool.submit(combined, item))
        waiting(combined, count)
    statement.leave.release(1_000)
    assert first.result(PATIENCE_SECONDS) == 0
    pool.shutdown()
    return rest


def test_who_comes_while_a_statement_runs_shares_the_next() -> None:
    statement = Statement(held=True)
    results = together(statement, combiner(statement), range(1, 31))
    assert [one.result(0) for one in results] == [2 * number for number in range(1, 31)]
    assert statement.batches == [[0], [*range(1, 31)]]


def test_no_statement_has_more_than_the_most() -> None:
    statement = Statement(held=True)
    results = together(statement, combiner(statement, most=4), range(1, 11))
    assert [one.result(0) for one in results] == [2 * number for number in range(1, 11)]
    assert [len(batch) for batch in statement.batches] == [1, 4, 4, 2]


def test_an_error_of_one_is_its_own() -> None:
    statement = Statement(held=True)
    results = together(statement, combiner(statement), [1, -2, 3, -4])
    assert [one.result(0) for one in results[::2]] == [2, 6]
    for one, text in zip(results[1::2], ("bad -2", "bad -4"), strict=True):
        with pytest.raises(ValueError, match=text):
            one.result(0)
    assert statement.batches == [[0], [1, -2, 3, -4], [1], [-2], [3], [-4]]


def test_an_error_that_is_nobodys_is_everybodys_and_is_not_tried_again() -> None:
    statement = Statement(held=True)
    results = together(statement, combiner(statement), [1, -100, 3])
    for one in results:
        with pytest.raises(OSError, match="away"):
            one.result(0)
    assert statement.batches == [[0], [1, -100, 3]]


def test_after_an_error_it_goes_on() -> None:
    combined = combiner(Statement())
    with pytest.raises(ValueError, match="bad"):
        combined(-1)
    assert combined(4) == 8


def test_a_caller_alone_runs_in_its_own_thread_and_does_not_linger() -> None:
    statement = Statement()
    combined = combiner(statement, linger_seconds=60)
    started = time.monotonic()
    assert combined(1) == 2
    assert time.monotonic() - started < 30
    assert statement.threads == [threading.current_thread().name]


def test_the_first_lingers_for_those_expected_and_no_longer() -> None:
    expected = threading.Event()
    expected.set()
    statement = Statement()
    combined = combiner(statement, linger_seconds=60, expects=expected.is_set)
    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(combined, item) for item in (1, 2, 3)]
        waiting(combined, 3)
        expected.clear()
        combined.hurry()
        assert [one.result(PATIENCE_SECONDS) for one in results] == [2, 4, 6]
    assert [sorted(batch) for batch in statement.batches] == [[1, 2, 3]]


def test_the_last_of_those_expected_ends_the_wait() -> None:
    statement = Statement()
    combined = combiner(statement, linger_seconds=60, expects=lambda: len(combined._waiting) < 2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(combined, 1)
        waiting(combined, 1)
        assert pool.submit(combined, 2).result(PATIENCE_SECONDS) == 4
        assert first.result(PATIENCE_SECONDS) == 2
    assert statement.batches == [[1, 2]]


def test_who_brings_enough_waits_for_nobody_who_lingers() -> None:
    statement = Statement()
    combined = Combiner(
        statement,
        linger_seconds=60,
        expects=lambda: True,
        at_fault=lambda _: False,
        enough=lambda item: item > 9,
    )
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(combined, 1)
        waiting(combined, 1)
        assert pool.submit(combined, 10).result(PATIENCE_SECONDS) == 20
        assert first.result(PATIENCE_SECONDS) == 2


def test_after_who_brought_enough_others_linger_again() -> None:
    statement = Statement()
    combined = Combiner(
        statement,
        linger_seconds=60,
        expects=lambda: len(combined._waiting) < 2,
        at_fault=lambda _: False,
        enough=lambda item: item > 9,
    )
    assert combined(10) == 20
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(combined, 1)
        waiting(combined, 1)
        assert pool.submit(combined, 2).result(PATIENCE_SECONDS) == 4
        assert first.result(PATIENCE_SECONDS) == 2
    assert statement.batches == [[10], [1, 2]]


def test_a_linger_ends() -> None:
    assert combiner(Statement(), linger_seconds=0.01, expects=lambda: True)(1) == 2


def test_a_full_batch_does_not_linger() -> None:
    statement = Statement()
    combined = combiner(statement, linger_seconds=60, expects=lambda: True, most=2)
    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(combined, (1, 2), timeout=PATIENCE_SECONDS)] == [2, 4]


def test_a_hundred_threads_get_each_their_own_answer() -> None:
    statement = Statement()
    combined = combiner(statement, linger_seconds=0.002, expects=lambda: True, most=16)
    with ThreadPoolExecutor(100) as pool:
        assert [*pool.map(combined, range(5_000))] == [2 * item for item in range(5_000)]
    assert sum(map(len, statement.batches)) == 5_000
    assert len(statement.batches) < 2_500

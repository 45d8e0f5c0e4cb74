"""What plugins do wrong is logged with their names, counted, and added up in SQL."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from captioner.errors import StoreUnavailableError
from captioner.plugin_errors import LOG_SECONDS, PluginErrorCount, PluginErrors
from captioner.plugins import Plugins
from captioner.reports import Reports
from captioner.store import Store, create_store_engine, upgrade

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    upgrade(database_url)
    with Store(create_store_engine(database_url)) as store:
        yield store


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def count(plugin: str, hook: str, errors: int, text: str, minutes: float = 0) -> PluginErrorCount:
    return PluginErrorCount(plugin, hook, errors, text, NOW + timedelta(minutes=minutes))


def test_each_hook_is_logged_once_a_minute_and_counted_always(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    errors = PluginErrors(clock=clock)
    with caplog.at_level(logging.ERROR):
        for number in range(1000):
            errors.report("mine", "observe", RuntimeError(f"down {number}"))
        errors.report("mine", "worker_ready", "too slow")
        errors.report("theirs", "observe", KeyError("x"))
        clock.now += LOG_SECONDS
        errors.report("mine", "observe", "still down")
    assert caplog.messages == [
        "plugin 'mine' failed in observe: RuntimeError: down 0",
        "plugin 'mine' failed in worker_ready: too slow",
        "plugin 'theirs' failed in observe: KeyError: 'x'",
        "plugin 'mine' failed in observe (and 999 times more since it was logged last): still down",
    ]
    assert errors.totals() == {
        ("mine", "observe"): 1001,
        ("mine", "worker_ready"): 1,
        ("theirs", "observe"): 1,
    }


def test_what_was_taken_is_not_taken_again_unless_it_is_put_back() -> None:
    errors = PluginErrors()
    for _ in range(3):
        errors.report("mine", "observe", RuntimeError("first\nand a second line"))
    (first,) = errors.take()
    assert (first.errors, first.last_error) == (3, "RuntimeError: first")
    assert errors.take() == []
    errors.report("mine", "observe", "later")
    errors.put_back([first])
    (both,) = errors.take()
    assert (both.errors, both.last_error) == (4, "later")
    assert errors.totals() == {("mine", "observe"): 4}


def test_what_fails_all_the_time_is_logged_every_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    errors = PluginErrors(clock=clock)
    for _ in range(100):
        errors.report("mine", "observe", "down")
        clock.now += LOG_SECONDS / 4
    assert len(caplog.messages) == 25


def test_threads_lose_no_count() -> None:
    errors = PluginErrors()
    taken = 0

    def work() -> None:
        for _ in range(500):
            errors.report("a", "observe", "x")

    with ThreadPoolExecutor(8) as threads:
        done = [threads.submit(work) for _ in range(8)]
        while not all(future.done() for future in done):
            taken += sum(one.errors for one in errors.take())
    taken += sum(one.errors for one in errors.take())
    assert taken == 4000
    assert errors.totals() == {("a", "observe"): 4000}


def test_counts_of_many_processes_add_up(store: Store) -> None:
    store.count_plugin_errors([])
    store.count_plugin_errors([count("b", "observe", 2, "older"), count("a", "observe", 1, "a")])
    store.count_plugin_errors([count("b", "observe", 3, "newer", minutes=1)])
    store.count_plugin_errors([count("b", "observe", 4, "written last", minutes=-1)])
    assert store.plugin_errors() == [
        count("a", "observe", 1, "a"),
        count("b", "observe", 9, "newer", minutes=1),
    ]


def test_what_no_database_can_hold_is_counted_all_the_same(store: Store) -> None:
    errors = PluginErrors()
    errors.report("p" * 1000, "observe", "half a pair \ud800, and \x00")
    errors.report("long", "observe", "x" * 100_000)
    store.count_plugin_errors(errors.take())
    one, two = store.plugin_errors()
    assert (one.plugin, len(one.last_error)) == ("long", 500)
    assert two.plugin == "p" * 255
    assert two.last_error.startswith("half a pair ?, and \N{REPLACEMENT CHARACTER}")


def test_workers_that_count_the_same_plugins_do_not_wait_for_each_other(store: Store) -> None:
    names = [f"plugin{number}" for number in range(20)]
    barrier = threading.Barrier(4)

    def work(turn: int) -> None:
        barrier.wait(30)
        for _ in range(25):
            order = names if turn % 2 else names[::-1]
            store.count_plugin_errors([count(name, "observe", 1, "x") for name in order])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert [one.errors for one in store.plugin_errors()] == [100] * 20


def test_what_cannot_be_written_waits_for_the_next_heartbeat(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins = Plugins()
    reports = Reports(store, plugins)
    plugins.errors.report("mine", "observe", "first")

    def away(_: object) -> None:
        raise StoreUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "count_plugin_errors", away)
        with pytest.raises(StoreUnavailableError):
            reports.send()
        reports.end()  # never raises
    plugins.errors.report("mine", "observe", "second")
    reports.send()
    reports.send()
    (written,) = store.plugin_errors()
    assert (written.errors, written.last_error) == (2, "second")

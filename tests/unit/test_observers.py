"""Observers hear of everything in order, and none holds up the worker or another observer."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from captioner import hookimpl, observers
from captioner.observers import Observers
from captioner.plugins import Plugins
from processes import wait_until

#: What a worker may take to tell somebody who does not listen: far less than any of them takes.
AT_ONCE_SECONDS = 5.0


class Listener:
    """Remembers what it heard; each call waits until it may go on."""

    def __init__(self, *, held: bool = False) -> None:
        self.heard: list[object] = []
        self.busy = threading.Event()
        self.may_go_on = threading.Event()
        if not held:
            self.may_go_on.set()

    @hookimpl
    def worker_ready(self, settings: object) -> None:
        self.hear("ready")

    @hookimpl
    def observe(self, event: object) -> None:
        self.hear(event)

    @hookimpl
    def worker_stopping(self) -> None:
        self.hear("stopping")

    def hear(self, what: object) -> None:
        self.busy.set()
        self.may_go_on.wait(60)
        self.heard.append(what)

    def wait_for(self, what: object) -> None:
        wait_until(lambda: what in self.heard)


@pytest.fixture
def plugins() -> Plugins:
    return Plugins()


@pytest.fixture
def told(plugins: Plugins) -> Iterator[Observers]:
    observers = Observers(plugins, capacity=3)
    yield observers
    observers.stop(0)


def tell(told: Observers, event: object) -> None:
    arguments: dict[str, Any] = {"event": event}
    told.tell("observe", **arguments)


def errors(plugins: Plugins) -> dict[tuple[str, str], tuple[int, str]]:
    return {(e.plugin, e.hook): (e.errors, e.last_error) for e in plugins.errors.take()}


def test_each_hears_all_of_it_in_order_and_in_one_thread(plugins: Plugins) -> None:
    threads = set()

    class Noting(Listener):
        def hear(self, what: object) -> None:
            threads.add(threading.current_thread())
            super().hear(what)

    first, second = Noting(), Listener()
    plugins.register(first, "first")
    plugins.register(second, "second")
    told = Observers(plugins)
    told.tell_and_wait("worker_ready", 30, settings=None)
    assert first.heard == second.heard == ["ready"]
    for number in range(500):
        tell(told, number)
    told.stop(30)
    assert first.heard == second.heard == ["ready", *range(500), "stopping"]
    (thread,) = threads
    assert thread is not threading.current_thread()
    assert not thread.is_alive()
    assert errors(plugins) == {}


def test_one_that_hangs_holds_up_nobody(plugins: Plugins, told: Observers) -> None:
    hung, well = Listener(held=True), Listener()
    plugins.register(hung, "hung")
    plugins.register(well, "well")
    started = time.monotonic()
    tell(told, 1)
    assert hung.busy.wait(30)
    tell(told, 2)
    wait_until(lambda: well.heard == [1, 2])
    assert time.monotonic() - started < AT_ONCE_SECONDS
    assert hung.heard == []
    hung.may_go_on.set()
    wait_until(lambda: hung.heard == [1, 2])


def test_what_too_many_wait_for_is_dropped_and_counted(
    plugins: Plugins, told: Observers, caplog: pytest.LogCaptureFixture
) -> None:
    slow, well = Listener(held=True), Listener()
    plugins.register(slow, "slow")
    plugins.register(well, "well")
    with caplog.at_level(logging.ERROR):
        tell(told, 0)
        assert slow.busy.wait(30)
        for number in range(1, 11):
            tell(told, number)
            well.wait_for(number)
    dropped = "3 calls wait for it: this one was dropped"
    assert errors(plugins) == {("slow", "observe"): (7, dropped)}
    (line,) = caplog.messages  # not seven
    assert line == f"plugin 'slow' failed in observe: {dropped}"
    slow.may_go_on.set()
    wait_until(lambda: slow.heard == [0, 1, 2, 3])
    tell(told, 11)  # there is room again
    wait_until(lambda: slow.heard == [0, 1, 2, 3, 11])


def test_nobody_waits_for_one_that_hangs_when_the_worker_ends(
    plugins: Plugins, told: Observers, caplog: pytest.LogCaptureFixture
) -> None:
    hung, well = Listener(held=True), Listener()
    plugins.register(hung, "hung")
    plugins.register(well, "well")
    tell(told, 1)
    assert hung.busy.wait(30)
    started = time.monotonic()
    with caplog.at_level(logging.ERROR):
        told.stop(0.05)
    assert time.monotonic() - started < AT_ONCE_SECONDS
    wait_until(lambda: well.heard == [1, "stopping"])
    assert hung.heard == []
    left = "busy with it when the worker ended, and left behind"
    assert errors(plugins)["hung", "observe"] == (1, left)
    assert f"plugin 'hung' failed in observe: {left}" in caplog.messages
    hung.may_go_on.set()
    wait_until(lambda: hung.heard == [1, "stopping"])


def test_a_call_that_takes_too_long_is_counted_once_while_it_takes(plugins: Plugins) -> None:
    told = Observers(plugins, hung_seconds=0.05)
    hung, well = Listener(held=True), Listener()
    plugins.register(hung, "hung")
    plugins.register(well, "well")
    tell(told, 1)
    assert hung.busy.wait(30)

    def reported() -> bool:
        told.report_hung()
        return bool(plugins.errors.totals())

    wait_until(reported)
    told.report_hung()
    assert errors(plugins) == {("hung", "observe"): (1, "has taken longer than 0.05 s")}
    hung.may_go_on.set()
    told.stop(30)
    assert hung.heard == well.heard == [1, "stopping"]
    told.report_hung()
    assert errors(plugins) == {}


def test_all_of_them_share_the_time_they_are_given(plugins: Plugins, told: Observers) -> None:
    hung = [Listener(held=True) for _ in range(20)]
    for number, one in enumerate(hung):
        plugins.register(one, f"hung{number}")
    started = time.monotonic()
    told.tell_and_wait("worker_ready", 0.5, settings=None)
    assert 0.5 <= time.monotonic() - started < AT_ONCE_SECONDS
    assert len(errors(plugins)) == 20
    started = time.monotonic()
    told.stop(0.5)
    assert 0.5 <= time.monotonic() - started < AT_ONCE_SECONDS
    assert len(errors(plugins)) == 20
    for one in hung:
        one.may_go_on.set()


def test_the_end_is_told_however_many_wait(plugins: Plugins, told: Observers) -> None:
    slow = Listener(held=True)
    plugins.register(slow, "slow")
    tell(told, 0)
    assert slow.busy.wait(30)
    for number in range(1, 10):
        tell(told, number)
    told.stop(0)
    slow.may_go_on.set()
    wait_until(lambda: slow.heard == [0, 1, 2, 3, "stopping"])


@pytest.mark.parametrize("error", [RuntimeError("down"), SystemExit(3)])
def test_one_that_raises_goes_on_hearing(
    plugins: Plugins, told: Observers, error: BaseException
) -> None:
    class Raising(Listener):
        def hear(self, what: object) -> None:
            super().hear(what)
            if what == 1:
                raise error

    raising, well = Raising(), Listener()
    plugins.register(raising, "raising")
    plugins.register(well, "well")
    tell(told, 1)
    tell(told, 2)
    wait_until(lambda: raising.heard == well.heard == [1, 2])
    (counted,) = errors(plugins).items()
    assert counted[0] == ("raising", "observe")
    assert counted[1][0] == 1
    assert counted[1][1].startswith(type(error).__name__)


def test_one_that_joins_later_is_told_too(plugins: Plugins, told: Observers) -> None:
    tell(told, 1)
    late = Listener()
    plugins.register(late, "late")
    tell(told, 2)
    wait_until(lambda: late.heard == [2])


def test_a_worker_with_no_observer_has_no_thread(plugins: Plugins, told: Observers) -> None:
    class Provides:
        @hookimpl
        def process_caption(self) -> None: ...

    plugins.register(Provides(), "provides")
    before = threading.active_count()
    tell(told, 1)
    told.stop(30)
    assert threading.active_count() == before


def test_a_hung_plugin_does_not_keep_the_process_alive() -> None:
    code = """
import threading
from captioner import hookimpl
from captioner.observers import Observers
from captioner.plugins import Plugins

class Hung:
    @hookimpl
    def observe(self, event):
        threading.Event().wait()

plugins = Plugins()
plugins.register(Hung(), "hung")
told = Observers(plugins)
told.tell("observe", event=None)
told.stop(0.1)
print("ended")
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout == "ended\n"
    assert "plugin 'hung' failed in observe" in ran.stderr


def test_a_worker_waits_for_seconds_not_minutes() -> None:
    assert observers.READY_SECONDS + observers.STOP_SECONDS <= 10

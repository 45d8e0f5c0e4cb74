"""Calls that may hang: what they give, what they raise, and who is left behind."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from captioner.bounded_calls import BoundedCalls, HangingError
from captioner.logs import _job_id, job_context
from processes import wait_until


def quiet() -> None:
    """Nothing ends the wait."""


def test_a_call_gives_what_it_gives_in_the_context_of_who_made_it() -> None:
    calls = BoundedCalls("t")
    with job_context("17"):
        assert calls.call(_job_id.get, quiet, 30) == "17"
    assert calls.call(threading.get_ident, quiet, 30) != threading.get_ident()
    assert calls.call(lambda: None, quiet, 30) is None
    assert calls.hanging == 0
    calls.close()


@pytest.mark.parametrize("raised", [ValueError("no"), TimeoutError(), SystemExit(3)])
def test_a_call_raises_what_it_raises_and_leaves_nothing(raised: BaseException) -> None:
    class Thing:
        """Known to the frame that raises."""

    def work() -> None:
        thing = Thing()
        things.append(weakref.ref(thing))
        raise raised

    things: list[weakref.ref[Thing]] = []
    calls = BoundedCalls("t")
    gc.disable()
    try:
        with pytest.raises(type(raised)) as caught:
            calls.call(work, quiet, 30)
        assert caught.value is raised
        raised.__traceback__ = None
        del caught
        wait_until(lambda: things[0]() is None)
    finally:
        gc.enable()
    calls.close()


def test_who_takes_too_long_is_left_behind_until_it_returns() -> None:
    calls, go_on, threads = BoundedCalls("t"), threading.Event(), []

    def work() -> None:
        threads.append(threading.get_ident())
        go_on.wait()

    for number in (1, 2):
        with pytest.raises(HangingError) as raised:
            calls.call(work, quiet, 0.1)
        assert raised.value.thread == threads[-1]
        assert calls.hanging == number
    assert calls.call(lambda: "well", quiet, 30) == "well"
    go_on.set()
    wait_until(lambda: calls.hanging == 0)
    calls.close()


def test_a_look_around_ends_the_wait() -> None:
    calls, go_on = BoundedCalls("t"), threading.Event()

    def look() -> None:
        raise KeyError("not wanted")

    with pytest.raises(KeyError, match="not wanted"):
        calls.call(go_on.wait, look, 30)
    assert calls.hanging == 1
    go_on.set()
    wait_until(lambda: calls.hanging == 0)
    calls.close()

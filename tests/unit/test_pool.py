"""The pool's word to Celery's loop: there is room again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from celery.worker import state as worker_state
from kombu.asynchronous import Hub, get_event_loop, set_event_loop

from captioner.broker.open_queues import open_queues
from captioner.celery import create_app
from captioner.pool import TaskPool
from captioner.settings import Settings

PATIENCE_SECONDS = 30


class Loop:
    """Celery's loop, in a thread of its own; it has nothing to read, and looks once a second."""

    def __init__(self) -> None:
        make: Any = Hub
        self.hub = make()
        self.woken = threading.Event()
        self._wake_up = self.hub._on_wakeup
        self.hub._on_wakeup = self._on_wakeup
        self._ended = threading.Event()
        self._nothing_to_read = os.pipe()
        self.hub.add_reader(self._nothing_to_read[0], lambda: None)
        self._thread = threading.Thread(target=self._run)
        runs = threading.Event()
        self.hub.call_soon(runs.set)
        self._thread.start()
        assert runs.wait(PATIENCE_SECONDS)

    def _run(self) -> None:
        turns = self.hub.create_loop()
        while not self._ended.is_set():
            next(turns)

    def _on_wakeup(self, waker: Any) -> None:
        self.woken.set()
        self._wake_up(waker)

    def end(self) -> None:
        self._ended.set()
        self._thread.join(PATIENCE_SECONDS)
        self.hub.close()
        for descriptor in self._nothing_to_read:
            os.close(descriptor)


@pytest.fixture
def loop() -> Iterator[Loop]:
    before = get_event_loop()
    loop = Loop()
    set_event_loop(loop.hub)
    yield loop
    set_event_loop(before)
    loop.end()


@pytest.fixture
def pool() -> Iterator[TaskPool]:
    pool = TaskPool(limit=1)
    yield pool
    pool.executor.shutdown()


def test_the_end_of_a_message_wakes_a_loop_that_waits_for_room(
    loop: Loop, pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = {"a message"}
    monkeypatch.setattr(worker_state, "reserved_requests", requests)
    assert pool.num_processes == 1  # Celery asks: one is in hand, so it takes no other

    pool.on_apply(lambda: None, (), callback=lambda _: requests.clear())

    assert loop.woken.wait(PATIENCE_SECONDS)
    assert pool.num_processes > len(requests)


def test_a_loop_that_may_take_more_is_left_alone(loop: Loop, pool: TaskPool) -> None:
    assert pool.num_processes == 1  # and none is in hand

    pool.on_apply(lambda: None, (), callback=lambda _: None).get(PATIENCE_SECONDS)

    assert not loop.woken.wait(0.2)


@pytest.mark.parametrize(("queues", "limit"), [("captions.bulk", 0), ("captions,captions.bulk", 1)])
def test_a_worker_with_plenty_takes_nothing_unless_it_is_for_editors(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, queues: str, limit: int
) -> None:
    pool.app = create_app(Settings())
    pool.app.amqp.queues.select(queues.split(","))
    assert pool.num_processes == 1
    monkeypatch.setattr(open_queues, "has_plenty", lambda: True)
    assert pool.num_processes == limit


def test_what_waits_for_a_thread_is_not_dropped_at_the_end(pool: TaskPool) -> None:
    running, leave = threading.Event(), threading.Event()
    ran: list[str] = []

    def run(name: str) -> None:
        running.set()
        assert leave.wait(PATIENCE_SECONDS)
        ran.append(name)

    for name in ("in its thread", "waiting for it"):
        pool.on_apply(run, (name,), callback=lambda _: None)
    assert running.wait(PATIENCE_SECONDS)
    end = threading.Thread(target=pool.on_stop)
    end.start()
    end.join(0.2)
    leave.set()
    end.join(PATIENCE_SECONDS)

    assert not end.is_alive()
    assert ran == ["in its thread", "waiting for it"]

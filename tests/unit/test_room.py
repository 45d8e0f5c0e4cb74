"""How many jobs of large messages are in hand at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import pytest

from captioner.room import Room
from processes import wait_until

#: A room that lets nobody in, or everybody, would otherwise be waited for.
pytestmark = pytest.mark.timeout(30)


def test_messages_go_in_while_there_is_room_and_wait_when_there_is_none() -> None:
    room = Room(10)
    inside: list[int] = []
    most: list[int] = []
    lock, leave = threading.Lock(), threading.Semaphore(0)

    def message(jobs: int) -> None:
        with room.taken(jobs):
            with lock:
                inside.append(jobs)
                most.append(sum(inside))
            leave.acquire()
            with lock:
                inside.remove(jobs)

    def settled(done: int, then: int) -> bool:
        return sum(one.done() for one in messages) == done and len(inside) == then

    with ThreadPoolExecutor(6) as executor:
        messages = [executor.submit(message, 6) for _ in range(6)]
        try:
            wait_until(lambda: len(inside) == 2)  # the second one exceeds the room, as it may
            for left in range(6, 0, -1):
                assert len(inside) == min(2, left)
                leave.release()
                done, then = 7 - left, min(2, left - 1)
                wait_until(partial(settled, done, then))
        finally:
            room.stop_waiting()
            leave.release(6)  # or a failure would wait for them
    assert max(most) == 12
    assert not any(one.exception() for one in messages)


def test_a_message_larger_than_the_room_goes_in_alone() -> None:
    room = Room(2)
    with room.taken(64):
        pass
    with room.taken(64):
        pass


def test_an_error_inside_frees_the_room() -> None:
    room = Room(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), room.taken(1):
            _ = 1 / 0


def test_nobody_waits_once_the_worker_stops() -> None:
    room = Room(1)

    def message() -> None:
        with room.taken(1):
            pass

    with ThreadPoolExecutor(2) as executor:
        with room.taken(1):
            messages = [executor.submit(message) for _ in range(2)]
            done, _ = wait(messages, timeout=0.1)
            assert not done
            room.stop_waiting()
            done, _ = wait(messages, timeout=10)
            assert len(done) == 2
        executor.submit(message).result(10)


def test_what_has_left_makes_room_before_the_message_ends() -> None:
    room, entered = Room(4), threading.Event()

    def message() -> None:
        with room.taken(4):
            entered.set()

    with ThreadPoolExecutor(1) as executor, room.taken(4) as leave:
        waiting = executor.submit(message)
        assert not entered.wait(0.1)
        leave(1)
        assert entered.wait(10)
        leave(3)
        waiting.result(10)
    # As many are inside as before: none was counted twice.
    with ThreadPoolExecutor(1) as executor, room.taken(4):
        entered.clear()
        waiting = executor.submit(message)
        assert not entered.wait(0.1)

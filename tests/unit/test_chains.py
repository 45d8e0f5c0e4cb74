"""Threads for work that may hang: chains that are stopped or left behind, and their successors."""

from __future__ import annotations

import threading

from captioner.chains import Chain, Threads
from processes import wait_until


class Held:
    """A chain over numbers that stands still at each until it is let go."""

    def __init__(self, *numbers: int) -> None:
        self.begun: list[int] = []
        self.taken: list[int] = []
        self.over = threading.Event()
        self.go = threading.Semaphore(0)
        self.chain = Chain(numbers, self._work, self._take, self.over.set)

    def _work(self, number: int) -> int:
        self.begun.append(number)
        self.go.acquire()
        return number * 10

    def _take(self, _: int, result: int) -> bool:
        self.taken.append(result)
        return result != 20

    def at(self, number: int) -> None:
        wait_until(lambda: self.begun[-1:] == [number])


def test_items_are_handled_in_order_until_one_ends_the_chain() -> None:
    held, threads = Held(1, 2, 3, 4), Threads(1, "t")
    threads.run(held.chain)
    held.at(1)
    assert (held.chain.items, held.chain.waiting) == ([1, 2, 3, 4], [2, 3, 4])
    held.go.release(4)
    assert held.over.wait(30)
    assert (held.taken, held.chain.items, held.chain.waiting) == ([10, 20], [3, 4], [3, 4])
    assert held.chain.returned
    threads.close()


def test_a_stopped_chain_finishes_what_it_is_at() -> None:
    held, threads = Held(1, 3), Threads(1, "t")
    threads.run(held.chain)
    held.at(1)
    held.chain.stop()
    held.go.release()
    assert held.over.wait(30)
    assert (held.taken, held.chain.items) == ([10], [3])
    threads.close()


def test_what_a_chain_left_behind_gives_is_not_taken() -> None:
    held, threads = Held(1, 3), Threads(1, "t")
    assert held.chain.leave() is None
    threads.run(held.chain)
    held.at(1)
    assert held.chain.leave(after_seconds=1000) is None
    left = held.chain.leave()
    assert left is not None
    assert left[0] == 1
    assert held.chain.leave() is None, "it is left once"
    threads.replace()
    held.go.release(2)
    assert held.over.wait(30)
    assert (held.taken, held.begun, held.chain.waiting) == ([], [1], [3])
    threads.close()


def test_as_many_run_as_are_wanted_and_those_left_behind_do_not_count() -> None:
    threads = Threads(2, "t")
    chains = [Held(1) for _ in range(5)]
    for held in chains:
        threads.run(held.chain)
    wait_until(lambda: sum(bool(held.begun) for held in chains) == 2)
    assert threads.free == 0
    for held in chains[:2]:
        assert held.chain.leave() is not None
        threads.replace()
    wait_until(lambda: sum(bool(held.begun) for held in chains) == 4)
    for held in chains:
        held.go.release()
    assert all(held.over.wait(30) for held in chains)
    wait_until(lambda: threads.free == 2)
    assert [held.taken for held in chains] == [[], [], [10], [10], [10]]
    # Their threads have ended, and those that replaced them have not.
    wait_until(lambda: sum(thread.name == "t" for thread in threading.enumerate()) == 2)
    threads.close()
    wait_until(lambda: not any(thread.name == "t" for thread in threading.enumerate()))

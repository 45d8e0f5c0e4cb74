"""What a worker may begin: by two clocks, of which either may stand still."""

from __future__ import annotations

import pytest

from captioner.delivering.leases import Leases


class Clocks:
    def __init__(self) -> None:
        self.wall = 1e9
        self.monotonic = 50.0
        self.leases = Leases(30.0, wall=lambda: self.wall, monotonic=lambda: self.monotonic)

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


def test_a_delivery_is_held_for_as_long_as_its_lease() -> None:
    clocks = Clocks()
    leases = clocks.leases
    assert not leases.holds(1)
    leases.add([1], leases.now())
    clocks.pass_by(20)
    leases.add([2], leases.now())
    assert leases.holds(1)
    clocks.pass_by(10)
    assert not leases.holds(1)
    assert leases.holds(2)


@pytest.mark.parametrize("clock", ["wall", "monotonic"])
def test_one_clock_is_enough_to_tell_that_it_is_over(clock: str) -> None:
    # A machine that was suspended has moved the time of day alone; one whose time of day was set
    # back has only the other.
    clocks = Clocks()
    clocks.leases.add([1], clocks.leases.now())
    setattr(clocks, clock, getattr(clocks, clock) + 31)
    assert not clocks.leases.holds(1)


def test_what_sql_does_not_confirm_is_held_no_more() -> None:
    clocks = Clocks()
    leases = clocks.leases
    leases.add([1, 2], leases.now())
    due = []
    for seconds in (5, 6):
        clocks.pass_by(seconds)
        due.append(leases.to_be_renewed)
    assert due == [False, True]
    before = leases.now()
    clocks.pass_by(4)  # which SQL takes to answer
    leases.renewed([2], before)
    assert (leases.holds(1), leases.holds(2)) == (False, True)
    clocks.pass_by(26)
    assert not leases.holds(2)

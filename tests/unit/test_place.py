"""Where a dispatcher's next claim begins: after the last one, and at the beginning when it must."""

from __future__ import annotations

from datetime import UTC, datetime

from captioner.deliveries import Target
from captioner.delivering.place import ANEW_SECONDS, LATE, SHARE, Place
from stored import NOON, delivery

A: Target = ("p", "a")
B: Target = ("p", "b")
DEAD: Target = ("p", "dead")


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_claim_begins_where_the_last_one_ended() -> None:
    place = Place(lambda: datetime.now(UTC), clock=Clock())
    assert place.begin() is None
    place.end([delivery(3, A), delivery(7, B)], {}, 5, ())
    assert place.begin() == (NOON, 7)
    before = datetime.now(UTC)
    place.end([], {DEAD: 0}, 5, ())
    after = place.begin()
    assert after is not None
    # Others write what is due now a little later.
    assert before - LATE <= after[0] <= datetime.now(UTC) - LATE
    assert not place.starving


def test_where_nobody_is_passed_over_there_is_nothing_to_save() -> None:
    place = Place(lambda: datetime.now(UTC), clock=Clock())
    place.begin()
    place.end([delivery(3, A)], {}, 5, ())
    assert place.begin() is not None
    place.end([], {A: 5}, 5, ())
    assert place.begin() is None


def test_it_begins_anew_after_a_while() -> None:
    clock = Clock()
    place = Place(lambda: datetime.now(UTC), clock=clock)
    assert place.begin() is None
    place.end([delivery(3, A)], {}, 5, ())
    clock.seconds += ANEW_SECONDS / 2
    assert place.begin() is not None
    place.end([delivery(4, A)], {}, 5, ())
    clock.seconds += ANEW_SECONDS / 2
    assert place.begin() is None


def test_what_takes_long_is_done_seldom() -> None:
    clock = Clock()
    place = Place(lambda: datetime.now(UTC), clock=clock)
    place.begin()
    clock.seconds += 0.5
    place.end([delivery(3, A)], {}, 5, ())
    clock.seconds += 0.5 * SHARE - 0.01
    assert place.begin() is not None
    clock.seconds += 0.02
    assert place.begin() is None


def test_it_begins_anew_for_a_target_that_was_passed_over_and_got_nothing() -> None:
    cases: list[dict[Target, int]] = [{A: 0}, {A: 1}]  # it had no room, or not enough
    for full in cases:
        place = Place(lambda: datetime.now(UTC), clock=Clock())
        place.begin()
        place.end([delivery(3, B), *([delivery(4, A)] if full[A] else [])], full, 5, ())
        assert place.begin() is not None
        place.end([delivery(9, B)], {A: 2}, 5, ())
        assert place.starving
        assert place.begin() is None
        # There was nothing of it before, either.
        place.end([delivery(10, B)], {A: 2}, 5, ())
        assert not place.starving


def test_it_does_not_for_one_that_is_full_or_fails_or_got_something() -> None:
    place = Place(lambda: datetime.now(UTC), clock=Clock())
    place.begin()
    place.end([], {A: 0, B: 0, DEAD: 0}, 5, ())
    place.begin()
    place.end([delivery(3, A)], {A: 2, B: 0, DEAD: 1}, 5, {DEAD: None})
    assert not place.starving

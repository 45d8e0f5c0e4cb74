"""What a dispatcher learns of its targets, and what it allows them."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from captioner.deliveries import AttemptEnd, Target
from captioner.delivering import health
from captioner.delivering.health import Health
from captioner.delivering.shares import CHAIN, MOST_LEFT, MOST_LEFT_FACTOR, Shares
from captioner.events import DeliveryState
from captioner.settings import EventSettings
from stored import NOON, delivery

A, B, C, D = (("p", name) for name in "abcd")


def end(key: Target, state: DeliveryState) -> AttemptEnd:
    return AttemptEnd(
        delivery=delivery(1, key),
        started_at=NOON,
        duration_seconds=0.1,
        state=state,
        due_at=NOON,
        error=None if state is DeliveryState.DELIVERED else "HTTP 500",
    )


def answers(known: Health, *keys: Target) -> None:
    for key in keys:
        known.note(end(key, DeliveryState.DELIVERED))


def fails(known: Health, *keys: Target) -> None:
    for key in keys:
        known.note(end(key, DeliveryState.PENDING))


def shares(known: Health, **values: int) -> Shares:
    return Shares(EventSettings(**values), known)


def test_a_failure_and_a_recovery_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "captioner.delivering")
    known = Health()
    fails(known, A, A)
    answers(known, A, A)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert (list(known.failing), list(known.well)) == ([], [A])


def test_no_more_targets_are_remembered_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MOST_TARGETS", 2)
    known = Health()
    fails(known, A, B, A, C)
    assert list(known.failing) == [A, C]
    answers(known, A, B, D)
    assert list(known.well) == [B, D]


def test_a_stranger_has_one_chain_and_one_that_is_well_its_share() -> None:
    known = Health()
    mine = shares(known, per_target_in_flight=3)
    assert (mine.chains(A, 0), mine.chains(A, 1)) == (1, 0)
    assert mine.room({A: ["chain"]}) == {A: 0}
    answers(known, A)
    assert mine.room({A: ["chain"]}) == {A: 2 * CHAIN}
    assert mine.room({}) == {A: 3 * CHAIN}


def test_those_that_fail_have_half_of_the_threads_and_take_turns() -> None:
    known = Health()
    mine = shares(known, threads=4)
    fails(known, A, B, C, D)
    assert mine.room({}) == {A: 1, B: 1, C: 0, D: 0}
    assert mine.room({C: ["chain"]}) == {A: 1, B: 0, C: 0, D: 0}
    known.put_behind([A])  # nothing of it was due
    fails(known, B)
    assert mine.room({}) == {C: 1, D: 1, A: 0, B: 0}
    assert shares(known, threads=1).room({}) == {C: 1, D: 0, A: 0, B: 0}


def test_a_plugin_that_many_threads_are_in_keeps_the_targets_that_are_well() -> None:
    known = Health()
    mine = shares(known)
    answers(known, A, B, ("other", "a"))
    fails(known, B, C)
    assert mine.without({"p": MOST_LEFT - 1}) == {}
    assert mine.without({"p": MOST_LEFT, "q": MOST_LEFT}) == {"p": ["a"], "q": []}
    assert mine.without({"p": MOST_LEFT * MOST_LEFT_FACTOR}) == {"p": ()}


def test_a_delivery_made_again_belongs_to_the_same_target() -> None:
    known = Health()
    known.note(dataclasses.replace(end(A, DeliveryState.DEAD), delivery=delivery(9, A)))
    answers(known, A)
    assert not known.failing

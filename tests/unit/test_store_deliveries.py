"""Events, their deliveries, leases, attempts and the log, on both databases."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from threading import Barrier
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from captioner.deliveries import AttemptEnd, Delivery, Expansion, NewDelivery
from captioner.domain import JobState
from captioner.errors import DeliveryNotFoundError, EventNotFoundError
from captioner.events import DeliveryState, Event
from captioner.store import Store, create_store_engine, delivery_log, retention, upgrade
from processes import wait_until
from stored import NOON, claimed, delete_old, success

if TYPE_CHECKING:
    from collections.abc import Iterator

SECOND = timedelta(seconds=1)
LEASE_SECONDS = 60.0


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    engine = create_store_engine(database_url)
    upgrade(engine)
    with Store(engine) as store:
        yield store


def at(seconds: float) -> datetime:
    return NOON + seconds * SECOND


def happen(store: Store, count: int = 1) -> list[Event]:
    """Jobs that succeed at noon; their events."""
    store.record([success(job) for job in claimed(store, count)], now=NOON)
    return unexpanded(store)[-count:]


def unexpanded(store: Store, limit: int = 1000, after: int = 0) -> list[Event]:
    found = store.unexpanded(limit, after=after)
    assert list(found) == [event.id for event in found.values()]
    return list(found.values())


def expanded(store: Store, events: list[Event], *targets: str | None, plugin: str = "p") -> None:
    expansions = [expansion(event, *targets, plugin=plugin) for event in events]
    assert store.expand(expansions, now=NOON) == {event.id for event in events}


def expansion(event: Event, *targets: str | None, plugin: str = "p") -> Expansion:
    assert event.id is not None
    new = [NewDelivery(plugin=plugin, target=target, due_at=NOON) for target in targets]
    return Expansion(event.id, tuple(new))


def claim(store: Store, owner: str = "w", limit: int = 100, **values: Any) -> list[Delivery]:
    values = {"default_room": 100, "apart_room": 100, "now": NOON, **values}
    return store.claim_deliveries(owner, limit, LEASE_SECONDS, **values)


def end(delivery: Delivery, state: DeliveryState, **values: Any) -> AttemptEnd:
    values = {"started_at": NOON, "duration_seconds": 0.25, "due_at": NOON, **values}
    return AttemptEnd(delivery=delivery, state=state, **values)


def state_of(store: Store, delivery: Delivery) -> DeliveryState:
    return store.get_delivery(delivery.id)[0].state


def delivery_row(store: Store, delivery: Delivery) -> dict[str, Any]:
    with store._database.reading() as connection:
        query = text("SELECT * FROM deliveries WHERE id = :id")
        return dict(connection.execute(query, {"id": delivery.id}).mappings().one())


# Expanding


def test_an_event_is_what_its_job_did(store: Store) -> None:
    (job,) = claimed(store)
    store.record([dataclasses.replace(success(job), timings={"total": 0.5})], now=NOON)
    (event,) = unexpanded(store)
    assert event.id is not None
    assert event == Event(
        id=event.id,
        job_id=job.id,
        type="caption.succeeded",
        state=JobState.SUCCEEDED,
        attempt=1,
        occurred_at=NOON,
        timings=(("total", 0.5),),
    )


def test_unexpanded_events_come_page_by_page_oldest_first(store: Store) -> None:
    events = happen(store, 5)
    ids = [event.id or 0 for event in events]
    assert unexpanded(store, 2) == events[:2]
    assert unexpanded(store, 2, after=ids[1]) == events[2:4]
    expanded(store, [events[0], events[2]])
    assert [event.id for event in unexpanded(store, 10)] == [ids[1], ids[3], ids[4]]


def test_an_event_is_expanded_once(store: Store) -> None:
    event, other = happen(store, 2)
    expanded(store, [event], "a", "b")
    again = store.expand([expansion(event, "c"), expansion(other, "c")], now=NOON)
    assert again == {other.id}
    found = {(one.event.id, one.plugin, one.target) for one in store.list_deliveries()}
    assert found == {(event.id, "p", "a"), (event.id, "p", "b"), (other.id, "p", "c")}


def test_workers_that_expand_the_same_events_at_once_write_each_once(database_url: str) -> None:
    upgrade(database_url)
    with (
        Store(create_store_engine(database_url)) as one,
        Store(create_store_engine(database_url)) as two,
    ):
        events = happen(one, 40)
        barrier = Barrier(8, timeout=60)

        def run(number: int) -> set[int]:
            store, order = (one, two)[number % 2], events if number < 4 else events[::-1]
            wanted = [expansion(event, "a", None) for event in order]
            assert unexpanded(store, 100) == events  # has the thread a connection of its own
            barrier.wait()
            return store.expand(wanted)

        with ThreadPoolExecutor(8) as pool:
            ours = [event_id for ids in pool.map(run, range(8)) for event_id in ids]
        assert sorted(ours) == sorted(event.id or 0 for event in events)
        assert len(one.list_deliveries(limit=1000)) == 80
        assert unexpanded(one) == []


def test_an_event_nobody_wants_is_expanded_too(store: Store) -> None:
    expanded(store, happen(store))
    assert (unexpanded(store, 10), store.list_deliveries()) == ([], [])


# Claiming


def test_a_delivery_is_claimed_with_its_event_by_one_owner(store: Store) -> None:
    (event,) = happen(store)
    expanded(store, [event], "a")
    (delivery,) = claim(store)
    assert (delivery.event, delivery.key, delivery.attempts) == (event, ("p", "a"), 0)
    assert claim(store, "other") == []
    assert delivery_row(store, delivery)["lease_owner"] == "w"


def test_the_longest_due_come_first_and_nothing_before_its_time(store: Store) -> None:
    events = happen(store, 3)
    for event, seconds in zip(events, (20, 0, 10), strict=True):
        new = NewDelivery(plugin="p", target="a", due_at=at(seconds))
        store.expand([Expansion(event.id or 0, (new,))], now=NOON)
    assert [one.due_at for one in claim(store, now=at(15))] == [at(0), at(10)]
    assert [one.due_at for one in claim(store, now=at(20))] == [at(20)]


def test_a_lease_that_ended_is_anybodys_and_a_renewed_one_is_not(store: Store) -> None:
    expanded(store, happen(store, 2), "a")
    kept, lost = claim(store)
    assert store.renew_leases("w", [kept.id], LEASE_SECONDS, now=at(40)) == {kept.id}
    assert store.renew_leases("thief", [lost.id], LEASE_SECONDS, now=at(40)) == set()
    assert claim(store, "other", now=at(59)) == []
    assert [one.id for one in claim(store, "other", now=at(60))] == [lost.id]
    assert [one.id for one in claim(store, "other", now=at(100))] == [kept.id]
    assert store.renew_leases("w", [kept.id, lost.id], LEASE_SECONDS, now=at(101)) == set()


def test_what_was_released_is_claimed_at_once_untried(store: Store) -> None:
    expanded(store, happen(store, 2), "a")
    mine, released = claim(store)
    store.release_leases("thief", [mine.id])
    store.release_leases("w", [released.id])
    (found,) = claim(store, "other")
    assert (found.id, found.attempts) == (released.id, 0)


def test_a_claim_may_go_on_where_another_ended(store: Store) -> None:
    expanded(store, happen(store, 3), "a", "b")
    first = claim(store, limit=2)
    rest = claim(store, after=(first[0].due_at, first[0].id + 2))
    assert [one.id for one in first + rest] == [first[0].id + n for n in (0, 1, 3, 4, 5)]
    assert claim(store, after=(at(-1), 10**6))[0].id == first[0].id + 2
    assert claim(store, "other", after=(NOON, 10**6), now=at(100)) == []


def test_full_targets_are_passed_over_however_many_wait(store: Store) -> None:
    expanded(store, happen(store, 20), "dead")
    expanded(store, happen(store, 2), "a", "b", None)
    found = claim(store, limit=4, room={("p", "dead"): 0})
    assert [one.target for one in found] == ["a", "b", None, "a"]
    found = claim(store, limit=4, room={("p", "dead"): 0, ("p", None): 0})
    assert [one.target for one in found] == ["b"]


def test_no_target_gets_more_than_it_has_room_for(store: Store) -> None:
    expanded(store, happen(store, 5), "a", "b", None)
    found = claim(store, room={("p", "a"): 3, ("p", None): 2}, default_room=1)
    targets = [one.target for one in found]
    assert {target: targets.count(target) for target in ("a", "b", None)} == {
        "a": 3,
        "b": 1,
        None: 2,
    }


def test_questions_for_targets_have_room_of_their_own(store: Store) -> None:
    expanded(store, happen(store, 2), "a", None)
    assert {one.target for one in claim(store, room={("p", None): 0})} == {"a"}
    assert {one.target for one in claim(store, room={("p", "a"): 0})} == {None}


def test_plugins_can_be_left_out(store: Store) -> None:
    for plugin in ("hung", "p"):
        expanded(store, happen(store, 1), "a", None, plugin=plugin)
    assert {one.plugin for one in claim(store, without={"hung": ()})} == {"p"}
    assert {one.plugin for one in claim(store)} == {"hung"}


def test_a_plugin_that_is_left_out_may_keep_some_of_its_targets(store: Store) -> None:
    expanded(store, happen(store, 1), "a", "b", None, plugin="hung")
    expanded(store, happen(store, 1), "c")
    assert {one.target for one in claim(store, without={"hung": ["b"], "q": ()})} == {"b", "c"}
    assert {one.target for one in claim(store)} == {"a", None}


# Workers that were lost


def test_what_a_worker_was_lost_with_is_made_apart_until_an_attempt_ends(store: Store) -> None:
    expanded(store, happen(store), "a")
    (first,) = claim(store, "killed")
    assert not first.apart
    (second,) = claim(store, "other", now=at(60))
    assert second.apart
    store.release_leases("other", [second.id])  # it was not begun
    (third,) = claim(store, "third", now=at(60))
    assert third.apart
    failed = end(third, DeliveryState.PENDING, error="HTTP 500")
    store.record_attempts("third", [failed], now=at(60))
    (fourth,) = claim(store, now=at(60))
    assert not fourth.apart
    store.record_attempts("w", [dataclasses.replace(failed, delivery=fourth, apart=True)])
    (fifth,) = claim(store, now=at(60))
    assert fifth.apart


def test_a_worker_whose_own_leases_ended_was_not_lost(store: Store) -> None:
    expanded(store, happen(store), "a")
    claim(store)
    (again,) = claim(store, now=at(60))
    assert not again.apart


def test_others_to_the_same_target_are_made_apart_too(store: Store) -> None:
    expanded(store, happen(store, 3), "a", None)
    expanded(store, happen(store), "b")
    expanded(store, happen(store), "a", plugin="q")
    claim(store, "killed", limit=1)  # "a" of the first event
    found = claim(store, "other", now=at(60))
    assert {(one.key, one.apart) for one in found} == {
        (("p", "a"), True),
        (("p", None), False),
        (("p", "b"), False),
        (("q", "a"), False),
    }
    ends = [end(one, DeliveryState.PENDING) for one in found]
    store.record_attempts("other", ends, now=at(60))
    assert not any(one.apart for one in claim(store, now=at(60)))


def test_questions_are_made_apart_like_deliveries(store: Store) -> None:
    expanded(store, happen(store, 2), None)
    claim(store, "killed", limit=1)
    assert [one.apart for one in claim(store, "other", now=at(60))] == [True, True]


def test_no_more_are_made_apart_than_there_is_room_for(store: Store) -> None:
    expanded(store, happen(store, 4), "a")
    expanded(store, happen(store), "b")
    claim(store, "killed", limit=2)
    found = claim(store, "other", now=at(60), apart_room=1)
    assert [(one.target, one.apart) for one in found] == [("a", True), ("b", False)]
    assert claim(store, "third", now=at(60), apart_room=0) == []
    assert len(claim(store, "third", now=at(60))) == 3


def test_dispatchers_that_claim_at_once_get_each_delivery_once(database_url: str) -> None:
    upgrade(database_url)
    with (
        Store(create_store_engine(database_url)) as one,
        Store(create_store_engine(database_url)) as two,
    ):
        expanded(one, happen(one, 60), "a", "b")
        barrier = Barrier(8, timeout=60)

        def run(number: int) -> list[int]:
            barrier.wait()
            mine: list[int] = []
            for _ in range(30):
                found = claim((one, two)[number % 2], f"w{number}", limit=7)
                mine += [delivery.id for delivery in found]
            return mine

        with ThreadPoolExecutor(8) as pool:
            ids = [delivery_id for mine in pool.map(run, range(8)) for delivery_id in mine]
        assert sorted(ids) == sorted(d.id for d in one.list_deliveries(limit=1000))


# Recording


def test_a_delivery_that_was_made_is_over_and_logged(store: Store) -> None:
    expanded(store, happen(store), "a")
    (delivery,) = claim(store)
    made = end(delivery, DeliveryState.DELIVERED, status=204, excerpt="thanks", started_at=at(1))
    assert store.record_attempts("w", [made], now=at(2)) == {delivery.id}
    found, (attempt,) = store.get_delivery(delivery.id)
    assert (found.state, found.attempts, found.finished_at) == (made.state, 1, at(2))
    assert (found.last_status, found.last_error) == (204, None)
    assert (attempt.number, attempt.started_at, attempt.duration_seconds) == (1, at(1), 0.25)
    assert (attempt.status, attempt.error, attempt.excerpt) == (204, None, "thanks")
    assert claim(store, now=at(1000)) == []


def test_one_that_failed_waits_for_its_time_and_keeps_every_attempt(store: Store) -> None:
    expanded(store, happen(store), "a")
    for number in (1, 2):
        (delivery,) = claim(store, now=at(10 * number))
        again = end(
            delivery,
            DeliveryState.PENDING,
            due_at=at(10 * number + 5),
            error=f"HTTP 50{number}",
            status=500 + number,
        )
        store.record_attempts("w", [again], now=at(10 * number))
        assert claim(store, now=at(10 * number + 4)) == []
    found, log = store.get_delivery(delivery.id)
    assert (found.state, found.attempts, found.finished_at) == (DeliveryState.PENDING, 2, None)
    assert (found.last_status, found.last_error) == (502, "HTTP 502")
    assert [(one.number, one.error) for one in log] == [(1, "HTTP 501"), (2, "HTTP 502")]


def test_what_is_recorded_without_the_lease_changes_nothing(store: Store) -> None:
    expanded(store, happen(store, 2), "a")
    lost, kept = claim(store)
    (stolen,) = claim(store, "other", limit=1, now=at(60))
    store.renew_leases("w", [kept.id], LEASE_SECONDS, now=at(60))
    assert stolen.id == lost.id
    made = [end(one, DeliveryState.DELIVERED) for one in (lost, kept)]
    assert store.record_attempts("w", made, now=at(61)) == {kept.id}
    assert state_of(store, lost) is DeliveryState.PENDING
    assert store.get_delivery(lost.id)[1] == []
    assert delivery_row(store, lost)["lease_owner"] == "other"


def test_an_attempt_from_before_another_one_changes_nothing(store: Store) -> None:
    expanded(store, happen(store), "a")
    (old,) = claim(store)
    store.record_attempts("w", [end(old, DeliveryState.PENDING, error="no")], now=NOON)
    (new,) = claim(store)
    assert store.record_attempts("w", [end(old, DeliveryState.DELIVERED)], now=NOON) == set()
    assert store.record_attempts("w", [end(new, DeliveryState.DELIVERED)], now=NOON) == {new.id}
    assert store.record_attempts("w", [end(new, DeliveryState.DEAD)], now=NOON) == set()
    assert state_of(store, new) is DeliveryState.DELIVERED


def test_what_no_database_can_store_is_stored_cleaned(store: Store) -> None:
    expanded(store, happen(store), "a")
    (delivery,) = claim(store)
    bad = end(delivery, DeliveryState.DEAD, error="a\x00b\ud800", excerpt="\x00" * 5000)
    assert store.record_attempts("w", [bad], now=NOON) == {delivery.id}
    found, (attempt,) = store.get_delivery(delivery.id)
    assert found.last_error == attempt.error == "a\N{REPLACEMENT CHARACTER}b?"
    assert len(attempt.excerpt) == 1024


def test_an_answered_question_is_replaced_by_the_targets(store: Store) -> None:
    event, other = happen(store, 2)
    expanded(store, [event], "a", None)
    expanded(store, [other], None)
    (known,) = (one for one in store.list_deliveries() if one.target == "a")
    asked = {one.event.id: one for one in claim(store, room={("p", "a"): 0})}
    named = tuple(NewDelivery(plugin="p", target=target, due_at=at(1)) for target in ("a", "b"))
    answers = [
        end(asked[event.id], DeliveryState.DELIVERED, targets=named),
        end(asked[other.id], DeliveryState.DELIVERED, targets=()),
    ]
    assert len(store.record_attempts("w", answers, now=at(1))) == 2
    found = {one.target: one for one in store.list_deliveries()}
    assert set(found) == {"a", "b"}
    assert found["a"] == known
    assert (found["b"].event, found["b"].due_at) == (event, at(1))


# The log


def test_deliveries_are_listed_newest_first_and_filtered(store: Store) -> None:
    expanded(store, happen(store, 3), "a", "b")
    expanded(store, happen(store), "a", plugin="q")
    everything = store.list_deliveries()
    assert [one.id for one in everything] == sorted((one.id for one in everything), reverse=True)
    page = store.list_deliveries(limit=4)
    assert page + store.list_deliveries(limit=4, before=page[-1].id) == everything
    assert {one.plugin for one in store.list_deliveries(plugin="q")} == {"q"}
    assert [one.target for one in store.list_deliveries(plugin="p", target="b")] == ["b"] * 3
    (delivery,) = claim(store, limit=1)
    store.record_attempts("w", [end(delivery, DeliveryState.DEAD)], now=NOON)
    assert [one.id for one in store.list_deliveries(DeliveryState.DEAD)] == [delivery.id]
    assert store.count_deliveries() == {
        DeliveryState.PENDING: 6,
        DeliveryState.DELIVERED: 0,
        DeliveryState.DEAD: 1,
    }


def test_unknown_ids_are_said_to_be_unknown(store: Store) -> None:
    with pytest.raises(DeliveryNotFoundError, match="no delivery has the id 7"):
        store.get_delivery(7)
    with pytest.raises(EventNotFoundError, match="no event has the id 8"):
        store.redeliver_event(8)
    assert store.redeliver([7]) == set()


def test_a_delivery_made_again_has_the_whole_schedule_and_keeps_its_log(store: Store) -> None:
    expanded(store, happen(store), "a")
    (delivery,) = claim(store)
    store.record_attempts("w", [end(delivery, DeliveryState.DEAD, error="410")], now=NOON)
    assert store.redeliver([delivery.id], now=at(50)) == {delivery.id}
    assert claim(store, now=at(49)) == []
    (again,) = claim(store, now=at(50))
    assert (again.id, again.attempts, again.finished_at) == (delivery.id, 0, None)
    store.record_attempts("w", [end(again, DeliveryState.DELIVERED)], now=at(51))
    assert [one.number for one in store.get_delivery(delivery.id)[1]] == [1, 2]


def test_one_that_is_being_tried_is_left_to_that(store: Store) -> None:
    expanded(store, happen(store), "a")
    (delivery,) = claim(store)
    assert store.redeliver([delivery.id], now=at(59)) == set()
    assert store.redeliver([delivery.id], now=at(60)) == {delivery.id}


def test_dead_ones_are_made_again_by_plugin_and_target(store: Store) -> None:
    expanded(store, happen(store, 2), "a", "b")
    expanded(store, happen(store), "a", plugin="q")
    ends = [end(one, DeliveryState.DEAD) for one in claim(store)[:-1]]
    store.record_attempts("w", ends, now=NOON)
    found = store.redeliver_dead(10, plugin="p", target="a", now=NOON)
    assert {store.get_delivery(one)[0].key for one in found} == {("p", "a")}
    assert len(found) == 2
    assert len(store.redeliver_dead(1, now=NOON)) == 1
    assert len(store.redeliver_dead(10, now=NOON)) == len(ends) - 3


def test_an_event_made_again_asks_for_new_targets_and_repeats_the_old(store: Store) -> None:
    (event,) = happen(store)
    expanded(store, [event], "a")
    (delivery,) = claim(store)
    store.record_attempts("w", [end(delivery, DeliveryState.DELIVERED)], now=NOON)
    assert store.redeliver_event(event.id or 0, now=NOON) == {delivery.id}
    assert unexpanded(store, 10) == [event]
    expanded(store, [event], "a", "new")
    assert sorted(one.target or "" for one in claim(store)) == ["a", "new"]


# Retention


def test_a_job_stays_until_its_event_is_delivered_or_given_up(store: Store) -> None:
    unexpanded, pending, dead, unwanted = happen(store, 4)
    expanded(store, [pending, dead], "a")
    expanded(store, [unwanted])
    (given_up,) = (one for one in claim(store) if one.event == dead)
    store.record_attempts("w", [end(given_up, DeliveryState.DEAD)], now=NOON)
    assert delete_old(store, at(1), 10) == 2
    left = {job.id for job in store.list_jobs()}
    assert left == {unexpanded.job_id, pending.job_id}
    with pytest.raises(DeliveryNotFoundError):
        store.get_delivery(given_up.id)
    with store._database.reading() as connection:
        assert connection.scalar(text("SELECT count(*) FROM delivery_attempts")) == 0


def test_jobs_that_must_stay_keep_no_other_from_being_deleted(store: Store) -> None:
    waiting = happen(store, 5)
    over = happen(store, 2)
    expanded(store, over)
    deleted, looked_at = 0, None
    while page := store.ended(at(1), 2, after=looked_at):
        deleted, looked_at = deleted + store.delete_over([job.id for job in page]), page[-1]
    assert deleted == 2
    assert {job.id for job in store.list_jobs()} == {event.job_id for event in waiting}


def test_what_is_made_again_at_that_moment_is_not_deleted(postgres_url: str) -> None:
    upgrade(postgres_url)
    with Store(create_store_engine(postgres_url)) as store:
        delivery = delivered(store)
        with store._database.transaction() as connection:
            assert delivery_log.redeliver(connection, [delivery.id], NOON) == {delivery.id}
            assert store.delete_over([delivery.event.job_id]) == 0
        assert store.delete_over([delivery.event.job_id]) == 0
        assert state_of(store, delivery) is DeliveryState.PENDING
        assert [one.id for one in claim(store)] == [delivery.id]


def test_what_is_deleted_at_that_moment_is_not_said_to_be_made_again(postgres_url: str) -> None:
    upgrade(postgres_url)
    with Store(create_store_engine(postgres_url)) as store, ThreadPoolExecutor(2) as other:
        delivery = delivered(store)
        with store._database.transaction() as connection:
            assert retention.delete_over(connection, [delivery.event.job_id]) == 1
            one = other.submit(store.redeliver, [delivery.id])
            all_of_it = other.submit(store.redeliver_event, delivery.event.id or 0)
            wait_until(lambda: waits_for_a_lock(store, 2))
        assert one.result(30) == set()
        with pytest.raises(EventNotFoundError):
            all_of_it.result(30)


def delivered(store: Store) -> Delivery:
    expanded(store, happen(store), "a")
    (delivery,) = claim(store)
    store.record_attempts("w", [end(delivery, DeliveryState.DELIVERED)], now=NOON)
    return delivery


def waits_for_a_lock(store: Store, connections: int) -> bool:
    query = text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with store._database.reading() as connection:
        return bool(connection.scalar(query) == connections)

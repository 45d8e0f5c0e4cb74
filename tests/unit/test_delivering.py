"""Expanding events and making deliveries: in-process plugins, both databases, no broker."""

from __future__ import annotations

import logging
import threading
import time
from asyncio import CancelledError
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from queue import Empty
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from captioner import Event, Job, hookimpl
from captioner.delivering import DeliveryService, expander, place, service, shares
from captioner.delivering.schedule import MAX_RETRY_AFTER_SECONDS, pause_seconds
from captioner.errors import DeliveryError, StoreUnavailableError
from captioner.events import DeliveryState, Receipt
from captioner.plugins import Plugins
from captioner.settings import EventSettings
from captioner.stats import WorkerStats
from captioner.store import Store, create_store_engine, upgrade
from deliverers import Deliverer, Gate
from processes import wait_until
from stored import claimed, success

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

DELIVERED, DEAD, PENDING = DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.PENDING


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    engine = create_store_engine(database_url)
    upgrade(engine)
    with Store(engine) as store:
        yield store


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Opened at the end, so that no thread outlives its test."""
    gate = Gate()
    yield gate
    gate.open()


def happen(store: Store, count: int) -> list[int]:
    """Jobs that succeed; the ids of their events."""
    before = set(store.unexpanded(100_000))
    store.record([success(job) for job in claimed(store, count)])
    return sorted(set(store.unexpanded(100_000)) - before)


def settings(**values: Any) -> EventSettings:
    return EventSettings(**{"poll_seconds": 0.01, "delays_seconds": (0.0,) * 3} | values)


@contextmanager
def delivering(
    store: Store, plugins: Mapping[str, object], owner: str = "w", **values: Any
) -> Iterator[tuple[DeliveryService, Plugins]]:
    registered = Plugins()
    for name, plugin in plugins.items():
        registered.register(plugin, name)
    running = DeliveryService(store, registered, owner, settings(**values))
    running.start()
    try:
        yield running, registered
    finally:
        running.stop()


def once_well(does: Callable[[Event], object]) -> Callable[[Event], object]:
    """Let the first delivery pass: a target that nothing is known of gets one at a time."""
    known: list[int] = []

    def call(event: Event) -> object:
        if known:
            return does(event)
        known.append(event.id or 0)
        return None

    return call


def receipt(**values: Any) -> Receipt:
    """One that is wrong, as no type checker would let it be."""
    return Receipt(**values)


def error(message: Any = "no", **values: Any) -> DeliveryError:
    """The same of an error."""
    return DeliveryError(message, **values)


class UntellableError(Exception):
    """Nobody can say what it says."""

    def __str__(self) -> str:
        raise OSError("no text")

    def __repr__(self) -> str:
        return "UntellableError()"


def states(store: Store, **where: Any) -> Counter[str]:
    return Counter(one.state.value for one in store.list_deliveries(limit=100_000, **where))


def wait_for(store: Store, expected: dict[str, int], **where: Any) -> None:
    wait_until(lambda: states(store, **where) == expected)


# The whole way


def test_every_target_of_every_plugin_gets_every_event_once(store: Store) -> None:
    events = happen(store, 300)
    one, two, nobody = Deliverer("a", "b"), Deliverer("a"), Deliverer()
    with delivering(store, {"one": one, "two": two, "nobody": nobody}) as (running, _):
        events += happen(store, 30)
        wait_for(store, {"delivered": 990})
        assert running.add_stats(WorkerStats()).deliveries == {
            ("one", "delivered"): 660,
            ("two", "delivered"): 330,
        }
    assert sorted(one.delivered) == sorted((t, event) for t in "ab" for event in events)
    assert sorted(two.delivered) == [("a", event) for event in events]
    assert sorted(nobody.asked) == sorted(one.asked) == events


def test_a_plugin_hears_the_event_the_job_and_its_captions(store: Store) -> None:
    heard: list[Any] = []

    class Listener:
        @hookimpl
        def event_targets(self, event: Event, job: Job, store: Store) -> list[str]:
            heard.append((event, job, store))
            return ["a"]

        @hookimpl
        def deliver_event(self, event: Event, job: Job, target: str, store: Store) -> Receipt:
            heard.append((event, job, store, target))
            return Receipt(status=202, excerpt="queued")

    happen(store, 1)
    (event,) = store.unexpanded(1).values()
    with delivering(store, {"p": Listener()}):
        wait_for(store, {"delivered": 1})
    job = store.get(event.job_id)
    assert job.caption == "a red circle"
    assert heard == [(event, job, store), (event, job, store, "a")]
    (delivery,) = store.list_deliveries()
    _, (attempt,) = store.get_delivery(delivery.id)
    assert (attempt.status, attempt.excerpt, attempt.error) == (202, "queued", None)


def test_two_workers_make_each_delivery_once(database_url: str) -> None:
    upgrade(database_url)
    plugin = Deliverer("a", "b")
    with (
        Store(create_store_engine(database_url)) as one,
        Store(create_store_engine(database_url)) as two,
    ):
        events = happen(one, 200)
        with delivering(one, {"p": plugin}), delivering(two, {"p": plugin}, "other"):
            wait_for(one, {"delivered": 400})
    assert sorted(plugin.delivered) == sorted((t, event) for t in "ab" for event in events)


# Failures


def fails(times: int, error: BaseException) -> Any:
    calls = Counter[int]()

    def call(event: Any) -> None:
        calls[event.id] += 1
        if calls[event.id] <= times:
            raise error

    return call


def test_what_fails_twice_is_delivered_once_with_each_attempt_in_the_log(store: Store) -> None:
    plugin = Deliverer("a")
    plugin.does["a"] = fails(2, DeliveryError("HTTP 503", status=503, excerpt="busy"))
    events = happen(store, 5)
    with delivering(store, {"p": plugin}) as (running, _):
        wait_for(store, {"delivered": 5})
        assert running.add_stats(WorkerStats()).deliveries == {
            ("p", "delivered"): 5,
            ("p", "failed"): 10,
        }
    assert sorted(plugin.delivered) == [("a", event) for event in events]
    for delivery in store.list_deliveries():
        _, log = store.get_delivery(delivery.id)
        assert [(one.status, one.error, one.excerpt) for one in log] == [
            (503, "HTTP 503", "busy"),
            (503, "HTTP 503", "busy"),
            (None, None, ""),
        ]


def test_what_never_works_is_dead_after_the_schedule_and_can_be_asked_for(store: Store) -> None:
    plugin = Deliverer("a")
    plugin.does["a"] = fails(4, ValueError("broken"))
    happen(store, 1)
    with delivering(store, {"p": plugin}) as (_, plugins):
        wait_for(store, {"dead": 1})
        (delivery,) = store.list_deliveries()
        assert (delivery.attempts, delivery.last_error) == (4, "ValueError: broken")
        assert plugins.errors.totals() == {("p", "deliver_event"): 4}
        store.redeliver_dead(10)
        wait_for(store, {"delivered": 1})
    assert [one.number for one in store.get_delivery(delivery.id)[1]] == [1, 2, 3, 4, 5]


def test_a_plugin_may_say_never_again(store: Store) -> None:
    plugin = Deliverer("a", "b")
    plugin.does["a"] = fails(1, DeliveryError("HTTP 410", status=410, permanent=True))
    happen(store, 1)
    with delivering(store, {"p": plugin}) as (_, plugins):
        wait_for(store, {"dead": 1, "delivered": 1})
        assert plugins.errors.totals() == {}
    (dead,) = store.list_deliveries(DEAD)
    assert (dead.target, dead.attempts, dead.last_status) == ("a", 1, 410)


def test_a_plugin_may_say_when(store: Store) -> None:
    plugin = Deliverer("a")
    plugin.does["a"] = fails(1, DeliveryError("HTTP 429", retry_after_seconds=1000))
    happen(store, 1)
    with delivering(store, {"p": plugin}):
        wait_until(lambda: [one.attempts for one in store.list_deliveries()] == [1])
    (delivery,) = store.list_deliveries()
    wait = delivery.due_at - datetime.now(UTC)
    assert timedelta(seconds=900) < wait <= timedelta(seconds=1000)


@pytest.mark.parametrize("given", [17, "abc", {"status": 200}])
def test_what_is_no_receipt_is_no_delivery(store: Store, given: object) -> None:
    plugin = Deliverer("a")
    plugin.does["a"] = lambda _: given
    happen(store, 1)
    with delivering(store, {"p": plugin}, delays_seconds=()):
        wait_for(store, {"dead": 1})
    (delivery,) = store.list_deliveries()
    assert delivery.last_error == f"TypeError: gave {type(given).__name__} instead of a Receipt"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (receipt(status="200"), "TypeError: gave str as status, not a whole number"),
        (receipt(status=float("nan")), "TypeError: gave float as status, not a whole number"),
        (Receipt(status=True), "TypeError: gave bool as status, not a whole number"),
        (Receipt(status=2**31), "ValueError: gave a status of more than 32 bits"),
        (receipt(excerpt=b"ok"), "TypeError: gave bytes as excerpt, not a text"),
        (error(status="410"), "TypeError: gave str as status, not a whole number"),
        (error(excerpt=7), "TypeError: gave int as excerpt, not a text"),
        (
            error(retry_after_seconds="5"),
            "TypeError: gave str as retry_after_seconds, not a number",
        ),
        (error(UntellableError()), "OSError: no text"),
        (UntellableError(), "UntellableError"),
        (CancelledError("the loop is closed"), "CancelledError: the loop is closed"),
        (GeneratorExit("over"), "GeneratorExit: over"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_the_log_cannot_hold_is_a_failed_attempt_of_that_plugin_alone(
    store: Store, given: Receipt | BaseException, problem: str
) -> None:
    wrong, other = Deliverer("a"), Deliverer("b")
    wrong.does["a"] = fails(1000, given) if isinstance(given, BaseException) else lambda _: given
    happen(store, 2)
    with delivering(store, {"wrong": wrong, "other": other}, delays_seconds=()) as (_, plugins):
        wait_for(store, {"dead": 2}, plugin="wrong")
        wait_for(store, {"delivered": 2}, plugin="other")
        assert plugins.errors.totals() == {("wrong", "deliver_event"): 2}
    errors = {one.last_error for one in store.list_deliveries(plugin="wrong")}
    assert len(errors) == 1
    assert problem in (errors.pop() or "")


@pytest.mark.parametrize(
    ("excerpt", "kept"),
    [
        ("a\x00b\ud800", "a\N{REPLACEMENT CHARACTER}b?"),
        ("é" * 10_000_000, "é" * 1024),
        (None, ""),
    ],
    ids=["unstorable", "huge", "none"],
)
def test_an_answer_that_can_be_kept_is_a_delivery(store: Store, excerpt: Any, kept: str) -> None:
    plugin = Deliverer("a", "b")
    plugin.does["a"] = lambda _: Receipt(status=HTTPStatus.ACCEPTED, excerpt=excerpt)
    plugin.does["b"] = fails(
        100,
        DeliveryError(
            "a\x00b\ud800",
            status=HTTPStatus.GONE,
            excerpt=excerpt,
            retry_after_seconds=float("nan"),
        ),
    )
    happen(store, 1)
    with delivering(store, {"p": plugin}, delays_seconds=(0.0,)):
        wait_for(store, {"delivered": 1, "dead": 1})
    for delivery in store.list_deliveries():
        attempts = store.get_delivery(delivery.id)[1]
        assert {one.excerpt for one in attempts} == {kept}
        status, error = {"a": (202, None), "b": (410, "a\N{REPLACEMENT CHARACTER}b?")}[
            delivery.target or ""
        ]
        assert {(one.status, one.error) for one in attempts} == {(status, error)}


def test_a_plugin_that_ends_the_process_does_not(store: Store) -> None:
    plugin = Deliverer("a")
    plugin.does["a"] = fails(1, SystemExit(3))  # what sys.exit raises
    happen(store, 1)
    with delivering(store, {"p": plugin}):
        wait_for(store, {"delivered": 1})


def test_a_plugin_that_is_gone_is_named(store: Store) -> None:
    happen(store, 1)
    with delivering(store, {"p": Deliverer("a")}, owner="first"):
        wait_for(store, {"delivered": 1})
    (delivery,) = store.list_deliveries()
    store.redeliver([delivery.id])
    with delivering(store, {"q": Deliverer()}, delays_seconds=()):
        wait_for(store, {"dead": 1})
    (delivery,) = store.list_deliveries()
    assert "no plugin 'p' with deliver_event" in (delivery.last_error or "")


# Holding nobody up


def test_a_dead_target_has_its_share_of_the_threads_and_no_more(store: Store, gate: Gate) -> None:
    plugin = Deliverer("dead", "a", "b")
    plugin.does["dead"] = once_well(gate)
    happen(store, 500)
    with delivering(store, {"p": plugin}, threads=6, per_target_in_flight=4):
        wait_for(store, {"delivered": 500}, target="a")
        wait_for(store, {"delivered": 500}, target="b")
        assert gate.held == 4
        gate.open()
        wait_for(store, {"delivered": 1500})
    assert plugin.most_in_flight["dead"] == 4
    assert max(plugin.most_in_flight.values()) == 4


def test_a_target_that_fails_is_tried_one_at_a_time_until_it_is_well(
    store: Store, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = Deliverer("a")
    (first, *_) = happen(store, 50)
    failed: list[int] = []

    def once(event: Any) -> None:
        if event.id == first and not failed:
            failed.append(event.id)
            raise DeliveryError("HTTP 500")
        if failed:
            gate(event)

    plugin.does["a"] = once
    caplog.set_level(logging.INFO, "captioner.delivering")
    with delivering(store, {"p": plugin}, per_target_in_flight=1):
        wait_until(lambda: gate.held == 1)
        # The rest of its chain was given back.
        leased = "SELECT count(*) FROM deliveries WHERE lease_owner IS NOT NULL"
        with store._database.reading() as connection:
            assert connection.scalar(text(leased)) == 1
        gate.open()
        wait_for(store, {"delivered": 50})
    told = [(record.levelname, record.target) for record in caplog.records]  # type: ignore[attr-defined]  # an extra
    assert told == [("WARNING", "a"), ("INFO", "a")]


def test_a_target_that_fails_has_one_thread_however_many_it_may_have(store: Store) -> None:
    plugin = Deliverer("a")
    failures: list[int] = []

    def slowly(event: Event) -> None:
        if not failures:
            wait_until(lambda: plugin.most_in_flight["a"] > 1)
        time.sleep(0.005)
        failures.append(event.id or 0)
        raise DeliveryError("HTTP 500")

    plugin.does["a"] = once_well(slowly)
    happen(store, 200)
    with delivering(store, {"p": plugin}, per_target_in_flight=4, threads=4):
        wait_until(lambda: len(failures) > 8)
        assert plugin.most_in_flight.pop("a") > 1
        wait_until(lambda: len(failures) > 40)
        assert plugin.most_in_flight["a"] == 1


def test_a_hanging_delivery_fails_and_holds_up_no_other(
    store: Store,
    gate: Gate,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A target that fails is thought of so often.
    monkeypatch.setattr(place, "ANEW_SECONDS", 0.05)
    plugin, other = Deliverer("hung"), Deliverer("a")
    plugin.does["hung"] = gate
    happen(store, 20)
    values: dict[str, Any] = {
        "threads": 2,
        "per_target_in_flight": 1,
        "attempt_timeout_seconds": 0.2,
    }
    with delivering(store, {"p": plugin, "q": other}, **values) as (_, plugins):
        wait_for(store, {"delivered": 20}, plugin="q")
        wait_until(lambda: gate.held == shares.MOST_LEFT)
        wait_until(lambda: plugins.errors.totals()["p", "deliver_event"] == shares.MOST_LEFT)
        # Too many threads are in it: no more until one comes back.
        happen(store, 20)
        wait_for(store, {"delivered": 40}, plugin="q")
        assert gate.held == shares.MOST_LEFT
        failed = [one for one in store.list_deliveries(plugin="p", limit=100) if one.last_error]
        assert {one.last_error for one in failed} == {"the plugin did not return within 0.2 s"}
        gate.open()
        wait_for(store, {"delivered": 80})
    assert "plugin 'p' failed in deliver_event" in caplog.text


def test_more_dead_targets_than_threads_hold_up_no_other(store: Store, gate: Gate) -> None:
    dead = [f"dead{number}" for number in range(40)]
    plugin = Deliverer(*dead, "a", "b", "c", "d")
    plugin.does |= dict.fromkeys(dead, gate)
    happen(store, 100)
    # They do not fail while this runs: nobody knows yet that they are dead.
    with delivering(store, {"p": plugin}, threads=32, attempt_timeout_seconds=600):
        wait_until(lambda: Counter(target for target, _ in plugin.delivered) == dict(LIVING), 60)
        assert gate.held == 40
        gate.open()


HANGS = ("p", "deliver_event")
LIVING = {"a": 100, "b": 100, "c": 100, "d": 100}


def test_targets_that_keep_failing_after_a_while_hold_up_no_other(store: Store) -> None:
    dead = [f"dead{number}" for number in range(40)]
    plugin = Deliverer(*dead, "a", "b", "c", "d")
    over = threading.Event()
    tried: set[str] = set()

    def time_out(target: str) -> Callable[[Event], None]:
        def call(_: Event) -> None:
            tried.add(target)
            over.wait(0.5)
            raise DeliveryError("no answer")

        return call

    plugin.does |= {target: time_out(target) for target in dead}
    happen(store, 50)
    with delivering(store, {"p": plugin}, threads=8):
        wait_until(lambda: tried == set(dead))
        happen(store, 100)
        started = time.monotonic()
        wanted = dict.fromkeys("abcd", 150)
        wait_until(lambda: Counter(target for target, _ in plugin.delivered) == wanted, 60)
        # The dead would have kept the eight threads for 6000 times half a second.
        assert time.monotonic() - started < 60
        assert sum(plugin.in_flight[target] for target in dead) <= 4 + 1
        over.set()


def test_a_plugin_that_hangs_for_some_still_serves_the_targets_that_are_well(
    store: Store, gate: Gate
) -> None:
    hung = [f"hung{number}" for number in range(12)]
    plugin = Deliverer("a")
    happen(store, 5)
    with delivering(store, {"p": plugin}, attempt_timeout_seconds=0.2) as (_, plugins):
        wait_for(store, {"delivered": 5})
        plugin.targets = (*hung, "a")
        plugin.does |= dict.fromkeys(hung, gate)
        happen(store, 50)
        wait_until(lambda: plugins.errors.totals().get(HANGS, 0) >= shares.MOST_LEFT)
        happen(store, 50)
        wait_for(store, {"delivered": 105}, target="a")
        gate.open()


def test_what_a_hanging_delivery_answers_later_is_not_taken(store: Store, gate: Gate) -> None:
    plugin = Deliverer("hung")
    plugin.does["hung"] = gate
    happen(store, 1)
    values: dict[str, Any] = {"attempt_timeout_seconds": 0.1, "delays_seconds": ()}
    with delivering(store, {"p": plugin}, **values):
        wait_for(store, {"dead": 1})
        gate.open()
        wait_until(lambda: len(plugin.delivered) == 1)
    assert states(store) == {"dead": 1}
    (delivery,) = store.list_deliveries()
    (attempt,) = store.get_delivery(delivery.id)[1]
    assert attempt.duration_seconds >= 0.1


# Naming targets


def test_a_plugin_that_cannot_say_is_asked_again_and_no_other_waits(store: Store) -> None:
    broken, other = Deliverer(), Deliverer("a")
    wrong = Counter[int]()

    def targets(event: Any) -> list[str]:
        wrong[event.id] += 1
        if wrong[event.id] < 3:
            raise KeyError("config")
        return ["late"]

    broken.targets = targets
    events = happen(store, 10)
    with delivering(store, {"broken": broken, "other": other}) as (_, plugins):
        wait_for(store, {"delivered": 10}, plugin="other")
        wait_for(store, {"delivered": 10}, plugin="broken")
        assert plugins.errors.totals() == {("broken", "event_targets"): 20}
    assert sorted(broken.delivered) == [("late", event) for event in events]
    assert None not in {one.target for one in store.list_deliveries(limit=100)}


def test_a_plugin_that_never_can_say_is_given_up(store: Store) -> None:
    broken = Deliverer()
    broken.targets = fails(1000, KeyError("config"))
    happen(store, 1)
    with delivering(store, {"broken": broken}):
        wait_for(store, {"dead": 1})
    (delivery,) = store.list_deliveries()
    assert (delivery.target, delivery.last_error) == (None, "KeyError: 'config'")
    assert len(broken.asked) == 1 + 4


def test_a_plugin_that_hangs_when_asked_holds_up_no_other(
    store: Store, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expander, "BATCH_SECONDS", 0.2)
    hung, other = Deliverer(), Deliverer("a")
    hung.targets = gate
    happen(store, 300)
    values: dict[str, Any] = {"attempt_timeout_seconds": 0.2}
    with delivering(store, {"hung": hung, "other": other}, **values) as (_, plugins):
        wait_for(store, {"delivered": 300}, plugin="other")
        wait_until(lambda: gate.held >= 1 + shares.MOST_LEFT)
        happen(store, 50)
        wait_for(store, {"delivered": 350}, plugin="other")
        assert gate.held == 1 + shares.MOST_LEFT
        assert plugins.errors.totals()["hung", "event_targets"] > 1
        hung.targets = ("x",)
        gate.open()
        wait_until(lambda: states(store, target="x")["delivered"] > 300)
        wait_until(lambda: states(store)["pending"] == 0)
    assert len({event for _, event in hung.delivered}) + len(set(hung.asked)) >= 350


def test_a_slow_plugin_is_asked_apart_from_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expander, "BATCH_SECONDS", 0.05)
    slow, other = Deliverer(), Deliverer("a")
    slow.targets = slowly_named
    happen(store, 40)
    with delivering(store, {"slow": slow, "other": other}) as (_, plugins):
        wait_for(store, {"delivered": 80})
        assert plugins.errors.totals() == {("slow", "event_targets"): 1}
    assert len(slow.delivered) == 40


def slowly_named(_: Any) -> list[str]:
    time.sleep(0.01)
    return ["slow"]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("abc", "TypeError: gave str instead of an iterable of targets"),
        (7, "TypeError: gave int instead of an iterable of targets"),
        ([7], "TypeError: gave int as a target, not a text"),
        ([""], "ValueError: a target must be a printable text of 1 to 255 characters"),
        (["a" * 256], "ValueError: a target must be a printable text of 1 to 255 characters"),
        (["a\x00"], "ValueError: a target must be a printable text of 1 to 255 characters"),
        (["\ud800"], "ValueError: a target must be a printable text of 1 to 255 characters"),
        (
            [str(number) for number in range(1001)],
            "ValueError: gave more than 1000 targets for one event",
        ),
    ],
)
def test_what_is_no_target_is_not_stored(store: Store, given: object, problem: str) -> None:
    plugin = Deliverer()
    plugin.targets = lambda _: given
    happen(store, 1)
    with delivering(store, {"p": plugin}, delays_seconds=(9.0,)):
        wait_for(store, {"pending": 1})
    (delivery,) = store.list_deliveries()
    assert (delivery.target, delivery.last_error) == (None, problem)


def test_events_with_many_targets_are_written_some_at_a_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expander, "WRITTEN_AT_ONCE", 10)
    written: list[int] = []
    expand = Store.expand

    def count(self: Store, expansions: Any) -> set[int]:
        written.append(sum(len(one.deliveries) for one in expansions))
        return expand(self, expansions)

    monkeypatch.setattr(Store, "expand", count)
    happen(store, 20)
    with delivering(store, {"p": Deliverer("a", "b", "c", "d")}):
        wait_until(lambda: store.count_deliveries()[DELIVERED] == 80)
    assert max(written) == 12  # whole events, until there are ten or more


def test_targets_named_twice_are_one(store: Store) -> None:
    plugin = Deliverer("a", "b", "a")
    happen(store, 1)
    with delivering(store, {"p": plugin}):
        wait_for(store, {"delivered": 2})


# The end


def test_a_stop_finishes_what_runs_and_gives_back_the_rest(store: Store, gate: Gate) -> None:
    plugin = Deliverer("a")
    plugin.does["a"] = once_well(gate)
    happen(store, 20)
    with delivering(store, {"p": plugin}, per_target_in_flight=2) as (running, _):
        wait_until(lambda: gate.held == 2)
        running.stop_taking()
        gate.open()
        running.stop()
        assert states(store) == {"delivered": 3, "pending": 17}
    assert gate.held == 2
    assert len(store.claim_deliveries("next", 100, 60, default_room=100)) == 17
    assert store.try_acquire(expander.LEASE, "next", timedelta(seconds=1))


def test_what_ends_while_the_dispatcher_stops_is_recorded(
    store: Store, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = Deliverer("a")
    plugin.does["a"] = gate
    happen(store, 1)
    with delivering(store, {"p": plugin}) as (running, _):
        wait_until(lambda: gate.held == 1)
        dispatcher = running._dispatcher
        real, (chain,) = dispatcher._news, dispatcher._all()

        class News:
            """Has something to tell just when nothing more was expected."""

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def get_nowait(self) -> Any:
                try:
                    return real.get_nowait()
                except Empty:
                    if dispatcher._stopping:
                        gate.open()
                        wait_until(lambda: chain.returned)
                    raise

        monkeypatch.setattr(dispatcher, "_news", News())
    assert states(store) == {"delivered": 1}


def test_a_stop_waits_only_so_long(
    store: Store, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "STOP_SECONDS", 0.3)
    plugin = Deliverer("a")
    plugin.does["a"] = gate
    happen(store, 1)
    with delivering(store, {"p": plugin}):
        wait_until(lambda: gate.held == 1)
    assert len(store.claim_deliveries("next", 100, 60, default_room=100)) == 1


def test_all_is_handed_back_at_once_when_asked_to(store: Store, gate: Gate) -> None:
    plugin = Deliverer("a")
    plugin.does["a"] = once_well(gate)
    happen(store, 20)
    with delivering(store, {"p": plugin}) as (running, _):
        wait_until(lambda: gate.held == 4)
        running.hand_back()
        assert len(store.claim_deliveries("next", 100, 60, default_room=100)) == 19
        gate.open()


def test_leases_are_renewed_while_a_delivery_takes_its_time(store: Store, gate: Gate) -> None:
    plugin = Deliverer("a")
    plugin.does["a"] = gate
    happen(store, 10)
    with delivering(store, {"p": plugin}, lease_seconds=3.0, per_target_in_flight=1):
        wait_until(lambda: gate.held == 1)
        for _ in range(2):
            wait_until_renewed(store)
        gate.open()
        wait_for(store, {"delivered": 10})


def lease_ends(store: Store) -> dict[int, Any]:
    """When the lease of each delivery that has one ends."""
    ends = text("SELECT id, lease_expires_at FROM deliveries WHERE lease_owner IS NOT NULL")
    with store._database.reading() as connection:
        return {row.id: row.lease_expires_at for row in connection.execute(ends)}


def wait_until_renewed(store: Store) -> None:
    """Every lease, but for what is given back."""
    before = lease_ends(store)

    def renewed() -> bool:
        ends = lease_ends(store)
        kept = ends.keys() & before.keys()
        return bool(kept) and all(ends[one] > before[one] for one in kept)

    wait_until(renewed)


def test_what_others_have_taken_is_not_begun_however_long_it_was_in_hand(
    store: Store, gate: Gate
) -> None:
    plugin = Deliverer("a")
    plugin.does["a"] = once_well(gate)
    happen(store, 40)
    with delivering(store, {"p": plugin}, lease_seconds=0.6, poll_seconds=0.1) as (running, _):
        wait_until(lambda: gate.held == 4)
        # As if this worker had slept: others take all it has, also what is being made.
        future = datetime.now(UTC) + timedelta(seconds=3600)
        taken = {one.id for one in store.claim_deliveries("o", 100, 3600, **EVERYTHING, now=future)}
        assert len(taken) == 39
        leases = running._dispatcher._leases
        wait_until(lambda: not any(leases.holds(one) for one in taken))
        gate.open()
        wait_until(lambda: not running._dispatcher.in_hand)
    assert gate.held == 4
    assert states(store) == {"delivered": 1, "pending": 39}


EVERYTHING: dict[str, Any] = {"default_room": 100, "apart_room": 100}


def test_leases_are_renewed_however_seldom_it_looks_for_more(store: Store, gate: Gate) -> None:
    plugin = Deliverer("a")
    plugin.does["a"] = gate
    happen(store, 1)
    with delivering(store, {"p": plugin}, poll_seconds=60.0, lease_seconds=3.0):
        wait_until(lambda: gate.held == 1)
        for _ in range(2):
            wait_until_renewed(store)
        gate.open()
        wait_for(store, {"delivered": 1})


def test_a_database_that_was_away_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "RETRY_SECONDS", 0.01)
    plugin = Deliverer("a", "b")
    events = happen(store, 30)
    real = {name: getattr(store, name) for name in AWAY}
    broken = Counter[str]()

    def away(name: str) -> Any:
        def call(*arguments: Any, **values: Any) -> Any:
            broken[name] += 1
            if broken[name] % 2:
                raise StoreUnavailableError("away")
            return real[name](*arguments, **values)

        return call

    for name in AWAY:
        monkeypatch.setattr(store, name, away(name))
    with delivering(store, {"p": plugin}):
        wait_for(store, {"delivered": 60})
        monkeypatch.undo()
    assert sorted(plugin.delivered) == sorted((t, event) for t in "ab" for event in events)
    assert all(broken[name] > 1 for name in AWAY)
    assert "deliveries will be tried again: away" in caplog.text


AWAY = ("unexpanded", "expand", "get_many", "claim_deliveries", "record_attempts")


# The schedule


def test_pauses_are_those_of_the_schedule_a_fifth_longer_or_shorter() -> None:
    delays = EventSettings().delays_seconds
    assert list(delays) == [5, 30, 120, 600, 3600, 10_800, 28_800, 86_400]
    for failures, delay in enumerate(delays, 1):
        pauses = [pause_seconds(failures, delays) or 0.0 for _ in range(500)]
        assert delay * 0.8 <= min(pauses) < delay * 0.85
        assert delay * 1.15 < max(pauses) <= delay * 1.2
    assert pause_seconds(9, delays) is None


def test_what_a_plugin_asks_for_is_waited_for_up_to_a_day() -> None:
    assert pause_seconds(1, [5.0], 100.0) == 100.0
    assert pause_seconds(1, [5.0], 1e9) == MAX_RETRY_AFTER_SECONDS
    assert 4.0 <= (pause_seconds(1, [5.0], 1.0) or 0.0) <= 6.0
    assert 4.0 <= (pause_seconds(1, [5.0], -1e9) or 0.0) <= 6.0
    assert pause_seconds(2, [5.0], 100.0) is None

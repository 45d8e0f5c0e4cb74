"""How fast events reach their targets, and whether dead targets hold up the others."""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from captioner import DeliveryError, Event, hookimpl
from captioner.bench.machine import describe_hardware
from captioner.bench.place import own_database
from captioner.delivering import DeliveryService
from captioner.domain import Caption, CaptionRequest, JobState, Outcome
from captioner.plugins import Plugins
from captioner.settings import Settings
from captioner.source import Source
from captioner.store import Store, create_store_engine

#: As long as a webhook waits for an answer.
DEAD_SECONDS = 15.0
CHUNK = 500
OWNER = "bench"


class EventPlan(NamedTuple):
    """What is measured."""

    events: int
    targets: int
    #: How many of the targets never answer.
    dead: int
    #: How long the others take for an answer.
    answer_seconds: float


class Receivers:
    """A plugin whose targets answer after a while, or never."""

    def __init__(self, alive: int, dead: int, answer_seconds: float) -> None:
        """Count nothing yet."""
        self._alive = [f"alive-{number}" for number in range(alive)]
        self._dead = [f"dead-{number}" for number in range(dead)]
        self._answer_seconds = answer_seconds
        self._lock = threading.Lock()
        self.answered: Counter[str] = Counter()
        self.over = threading.Event()

    @hookimpl
    def event_targets(self) -> list[str]:
        """Everybody wants every event; the dead come first."""
        return [*self._dead, *self._alive]

    @hookimpl
    def deliver_event(self, event: Event, target: str) -> None:
        """Answer, or let the caller wait."""
        if target.startswith("dead"):
            self.over.wait(DEAD_SECONDS)
            raise DeliveryError(f"no answer to event {event.id}")
        self.over.wait(self._answer_seconds)
        with self._lock:
            self.answered[target] += 1


def measure_events(
    settings: Settings, plan: EventPlan, say: Callable[[str], None]
) -> dict[str, Any]:
    """Deliver to as many targets as will answer, then to all while they do, then beside dead ones.

    Args:
        settings: `events` are the dispatcher's; a PostgreSQL that is named is used, in a database
            of its own.
        plan: what is measured.
        say: told what is being done.

    Returns:
        How many events a second each living target got: `alone`, with the others well (`all_well`),
        and with the others dead (`some_dead`).
    """
    report: dict[str, Any] = plan._asdict() | {"hardware": describe_hardware()}
    living = plan.targets - plan.dead
    runs = (("alone", living, 0), ("all_well", plan.targets, 0), ("some_dead", living, plan.dead))
    for name, alive, dead in runs:
        with own_database(settings) as url, Store(create_store_engine(url)) as store:
            report["database"] = url.partition("://")[0].partition("+")[0]
            say(f"writing {plan.events} events")
            _happen(store, plan.events)
            say(f"delivering them to {alive} targets that answer and {dead} that do not")
            receivers = Receivers(alive, dead, plan.answer_seconds)
            spent = _deliver(store, settings, receivers, plan.events * alive)
        report[f"{name}_seconds"] = round(spent.seconds, 3)
        report[f"{name}_events_per_second"] = round(plan.events / spent.seconds, 1)
        report[f"{name}_cpu_milliseconds_per_delivery"] = round(
            spent.cpu_seconds * 1000 / (plan.events * alive), 3
        )
    for ratio, name in (("ratio", "all_well"), ("ratio_alone", "alone")):
        report[ratio] = round(report[f"{name}_seconds"] / report["some_dead_seconds"], 3)
    return report


class Spent(NamedTuple):
    """What a run took."""

    seconds: float
    cpu_seconds: float


def _deliver(store: Store, settings: Settings, receivers: Receivers, deliveries: int) -> Spent:
    """Run until the living targets have answered so often."""
    plugins = Plugins()
    plugins.register(receivers, "receivers")
    service = DeliveryService(store, plugins, OWNER, settings.events)
    started, cpu = time.monotonic(), time.process_time()
    service.start()
    while receivers.answered.total() < deliveries:
        time.sleep(0.01)
    spent = Spent(time.monotonic() - started, time.process_time() - cpu)
    receivers.over.set()
    service.stop()
    return spent


def _happen(store: Store, events: int) -> None:
    """Jobs that have succeeded."""
    caption = Caption(text="a red circle", continuation="a red circle", score=-0.5)
    end = functools.partial(Outcome, attempt=1, state=JobState.SUCCEEDED, captions=(caption,))
    for first in range(0, events, CHUNK):
        requests = [
            CaptionRequest(source=Source(f"https://cms.example/{number}.jpg"))
            for number in range(first, min(first + CHUNK, events))
        ]
        store.add(requests)
        ids = [request.id for request in requests]
        store.claim(ids, OWNER)
        store.record([end(job_id=one) for one in ids])

"""From events to deliveries: every plugin is asked whom an event is for.

One worker does it at a time, the one that holds a lease. A plugin that raises, hangs or is slow is
asked again later, one event at a time and by the dispatcher, so that it holds up no other. When the
worker that did it was lost, nobody knows which plugin has ended it: the next one has all of them
asked in processes of their own, once, and from then on those that end these, too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection
from datetime import timedelta

from captioner.chains import Chain, Threads
from captioner.deliveries import Expansion, NewDelivery
from captioner.delivering.asking import HOOK, ask_targets, jobs_of
from captioner.delivering.schedule import pause_seconds
from captioner.domain import Job
from captioner.errors import describe
from captioner.events import Event
from captioner.logs import job_context
from captioner.plugins import Plugins
from captioner.settings import EventSettings
from captioner.store import Store

LEASE = "expander"
#: Another worker expands after this long when the one that did is killed.
LEASE_SECONDS = 15.0
#: Events expanded in one transaction.
BATCH = 200
#: Deliveries written in one transaction, and how long SQLite's other writers may then go first.
WRITTEN_AT_ONCE = 1_000
BREATH_SECONDS = 0.001
#: How long plugins may take for a batch, and for how long one that took longer is asked for none.
BATCH_SECONDS = 2.0
SLOW_SECONDS = 60.0
#: Threads left behind do not count.
MOST_PLUGINS_AT_ONCE = 64

logger = logging.getLogger(__name__)

#: What is asked: an event by its id, and its job. What a plugin says: its targets, or an error.
Question = tuple[int, Event, Job]
Answer = tuple[str, ...] | BaseException


class Expander:
    """Expands events while it holds the lease. For one thread."""

    def __init__(self, store: Store, plugins: Plugins, owner: str, settings: EventSettings) -> None:
        """`owner` is this worker's id in `store`."""
        self._store = store
        self._plugins = plugins
        self._owner = owner
        self._delays_seconds = settings.delays_seconds
        self._threads = Threads(MOST_PLUGINS_AT_ONCE, "event-targets")
        self._elected = False
        self._asked_for_lease_at = -LEASE_SECONDS
        #: The one elected before was lost, and nothing was expanded since.
        self._cautious = False
        #: Until when a plugin is not asked, and what it has not returned from.
        self._slow_until: dict[str, float] = {}
        self._left: dict[str, Chain[Question, Answer]] = {}
        #: Events that this version cannot read are passed over.
        self._after = 0

    def expand(self) -> int:
        """Expand a batch of events, if this worker is the one elected; how many there were.

        Raises:
            StoreUnavailableError: the database cannot be reached.
        """
        if not self._is_elected():
            return 0
        events = self._store.unexpanded(BATCH, after=self._after)
        jobs = jobs_of(self._store, {event.job_id for event in events.values()})
        questions = [
            (event_id, event, jobs[event.job_id])
            for event_id, event in events.items()
            if event.job_id in jobs
        ]
        # Ids are not committed in order: after the last one it begins at the first again.
        self._after = max(events) if len(questions) < len(events) else 0
        self._write(self._expansions(questions))
        self._cautious = self._cautious and not questions
        return len(questions)

    def release(self) -> None:
        """Let another worker expand at once.

        Raises:
            StoreUnavailableError: the database cannot be reached; the lease ends by itself.
        """
        self._threads.close()
        self._store.release(LEASE, self._owner)

    def _is_elected(self) -> bool:
        """Whether it holds the lease; asked for again when a third of it is over."""
        now = time.monotonic()
        if now - self._asked_for_lease_at >= LEASE_SECONDS / 3:
            self._asked_for_lease_at = now
            ttl = timedelta(seconds=LEASE_SECONDS)
            before = self._owner if self._elected else self._store.lease_holder(LEASE)
            self._elected = self._store.try_acquire(LEASE, self._owner, ttl)
            if self._elected and before not in (None, self._owner):
                logger.warning("the worker that expanded events was lost: plugins are asked apart")
                self._cautious = True
        return self._elected

    def _expansions(self, questions: list[Question]) -> list[Expansion]:
        if not questions:
            return []
        names = self._plugins.names(HOOK)
        apart = set(names) if self._cautious else self._store.asked_apart()
        answers = self._ask(questions, [name for name in names if name not in apart])
        return [
            Expansion(
                event_id,
                tuple(
                    delivery
                    for name in names
                    for delivery in self._deliveries(
                        name, answers.get(name, {}).get(event_id), apart=name in apart
                    )
                ),
            )
            for event_id, _, _ in questions
        ]

    def _write(self, expansions: list[Expansion]) -> None:
        """In transactions of a bounded size: events with many targets keep no other writer out."""
        some: list[Expansion] = []
        for expansion in expansions:
            some.append(expansion)
            if sum(len(one.deliveries) for one in some) >= WRITTEN_AT_ONCE:
                self._store.expand(some)
                some = []
                time.sleep(BREATH_SECONDS)
        self._store.expand(some)

    def _ask(
        self, questions: list[Question], plugins: Collection[str]
    ) -> dict[str, dict[int, Answer]]:
        """What each plugin says to each event, as far as it says something in time."""
        answers: dict[str, dict[int, Answer]] = {name: {} for name in plugins}
        asked = {}
        for name in answers:
            if not self._is_slow(name):
                done = threading.Event()
                asked[name] = self._chain(name, questions, answers[name], done), done
                self._threads.run(asked[name][0])
        deadline = time.monotonic() + BATCH_SECONDS
        for name, (chain, done) in asked.items():
            if not done.wait(max(0.0, deadline - time.monotonic())):
                self._give_up(name, chain)
        return answers

    def _chain(
        self,
        name: str,
        questions: list[Question],
        answers: dict[int, Answer],
        done: threading.Event,
    ) -> Chain[Question, Answer]:
        def ask(question: Question) -> Answer:
            _, event, job = question
            with job_context(event.job_id):
                try:
                    return ask_targets(self._plugins, name, event, job, self._store)
                except BaseException as error:  # noqa: BLE001  # a plugin's, of any kind
                    self._plugins.errors.report(name, HOOK, error)
                    return error

        def take(question: Question, answer: Answer) -> bool:
            answers[question[0]] = answer
            return True

        return Chain(questions, ask, take, done.set)

    def _give_up(self, name: str, chain: Chain[Question, Answer]) -> None:
        chain.stop()
        self._slow_until[name] = time.monotonic() + SLOW_SECONDS
        if chain.leave():
            self._left[name] = chain
            self._threads.replace()
        self._plugins.errors.report(
            name,
            HOOK,
            f"not done with {len(chain.items)} events after {BATCH_SECONDS:g} s: asked again "
            "later, one by one",
        )

    def _is_slow(self, name: str) -> bool:
        left = self._left.get(name)
        if left and left.returned:
            del self._left[name]
        return name in self._left or time.monotonic() < self._slow_until.get(name, 0.0)

    def _deliveries(self, name: str, answer: Answer | None, *, apart: bool) -> list[NewDelivery]:
        now = self._store.now()
        if isinstance(answer, tuple):
            return [NewDelivery(plugin=name, target=one, due_at=now) for one in answer]
        if answer is None:
            why = (
                "to be asked in a process of its own"
                if apart
                else "too slow to be asked with others"
            )
            late = f"the plugin is {why}"
            return [NewDelivery(plugin=name, target=None, due_at=now, error=late, apart=apart)]
        pause = pause_seconds(1, self._delays_seconds) or 0.0
        due_at = now + timedelta(seconds=pause)
        return [NewDelivery(plugin=name, target=None, due_at=due_at, error=describe(answer))]

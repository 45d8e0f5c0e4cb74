"""Making deliveries: leased in SQL, made by threads, recorded, and tried again.

One thread decides and talks to the database, in batches; many call the plugins. No target has more
than its share of them, so that a dead receiver holds nobody up, and none is waited for for ever.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from queue import Empty, SimpleQueue
from uuid import UUID

from captioner.deliveries import AttemptEnd, Delivery, Target
from captioner.delivering.asking import jobs_of
from captioner.delivering.attempts import Attempts, Started, hook_of
from captioner.delivering.chains import Chain, Threads
from captioner.delivering.failing import Failing
from captioner.delivering.place import Place
from captioner.domain import Job
from captioner.errors import DeliveryError
from captioner.events import DeliveryState
from captioner.plugins import Plugins
from captioner.settings import EventSettings
from captioner.store import Store

#: Deliveries to one target that a thread makes one after the other: few statements for many.
CHAIN = 16
#: Claimed by one statement; and looked at, of targets that nothing is known of.
BATCH = 256
STRANGERS = 64
#: What has ended waits so long for others, to be recorded together.
LINGER_SECONDS = 0.01
#: A plugin that so many threads have not come back from gets no more until one has.
MOST_LEFT = 8

logger = logging.getLogger(__name__)

#: An attempt that was not made has no end.
Deliveries = Chain[Delivery, AttemptEnd | None]


class Dispatcher:
    """Claims deliveries and sees them through.

    `step` and `finish` are for one thread, the rest for any.
    """

    def __init__(self, store: Store, plugins: Plugins, owner: str, settings: EventSettings) -> None:
        """`owner` is this worker's id in `store`."""
        self._store = store
        self._plugins = plugins
        self._owner = owner
        self._settings = settings
        self._attempts = Attempts(store, plugins, settings.delays_seconds)
        self._threads = Threads(settings.threads, "deliver")
        #: How attempts ended, as the threads tell; None: look what has changed.
        self._news: SimpleQueue[AttemptEnd | None] = SimpleQueue()
        self._chains: dict[Target, list[Deliveries]] = {}
        #: Left behind, and not yet back: of which plugin.
        self._left: list[tuple[str, Deliveries]] = []
        self._failing = Failing()
        self._place = Place()
        #: To be recorded, and to be given back.
        self._ended: list[AttemptEnd] = []
        self._untried: list[int] = []
        #: Whatever is in hand was leased then, or later.
        self._renewed_at = time.monotonic()
        self._wait_seconds = 0.0
        self._stopping = False
        #: Attempts by plugin and what became of them: `delivered`, `failed` or `dead`.
        self.totals: Counter[tuple[str, str]] = Counter()

    @property
    def in_hand(self) -> list[int]:
        """Leased to this worker and not recorded, by id."""
        chains = [chain for some in list(self._chains.values()) for chain in list(some)]
        chained = [delivery.id for chain in chains for delivery in chain.items]
        return [*chained, *(end.delivery.id for end in list(self._ended)), *self._untried]

    def wake(self) -> None:
        """Have `step` look for deliveries at once."""
        self._news.put(None)

    def stop_taking(self) -> None:
        """From now on nothing is claimed, and no attempt is begun."""
        self._stopping = True
        for chains in list(self._chains.values()):
            for chain in list(chains):
                chain.stop()
        self.wake()

    def step(self) -> None:
        """Wait for news, or until it is time to look for deliveries; see to both.

        Raises:
            StoreUnavailableError: the database cannot be reached; nothing is lost, call it again.
        """
        self._collect(self._wait_seconds)
        self._settle()
        if self._claim():
            self._wait_seconds = 0.0  # that may not be all
            return
        self._wait_seconds = self._settings.poll_seconds
        if self._chains:  # leases are to be renewed, and hanging attempts to be noticed
            settings = self._settings
            soon = min(settings.lease_seconds / 3, settings.attempt_timeout_seconds)
            self._wait_seconds = min(self._wait_seconds, soon)

    def finish(self, seconds: float) -> None:
        """Let what is being tried come to its end, for so long; give the rest back.

        Raises:
            StoreUnavailableError: the database cannot be reached; the leases end by themselves.
        """
        self.stop_taking()
        deadline = time.monotonic() + seconds
        while self._chains and time.monotonic() < deadline:
            self._collect(min(self._settings.poll_seconds, max(0.0, deadline - time.monotonic())))
            self._settle()
        self._threads.close()
        self._settle()
        self._store.release_leases(self._owner, self.in_hand)

    def _collect(self, wait_seconds: float) -> None:
        """What the threads have to tell, and what they have not told for too long."""
        with contextlib.suppress(Empty):
            news = self._news.get(timeout=wait_seconds)
            if news:
                time.sleep(LINGER_SECONDS)
            while True:
                if news:
                    self._ended.append(news)
                    self._failing.note(news)
                news = self._news.get_nowait()
        for chains in self._chains.values():
            for chain in list(chains):
                if chain.returned or self._leave(chain):
                    chains.remove(chain)
                    self._untried += [delivery.id for delivery in chain.waiting]
        self._chains = {key: chains for key, chains in self._chains.items() if chains}
        self._left = [left for left in self._left if not left[1].returned]

    def _leave(self, chain: Deliveries) -> bool:
        """Go on without a thread that has been at one delivery for too long."""
        left = chain.leave(self._settings.attempt_timeout_seconds)
        if left is None:
            return False
        delivery, seconds = left
        self._threads.replace()
        self._left.append((delivery.plugin, chain))
        error = f"did not return within {self._settings.attempt_timeout_seconds:g} s"
        self._plugins.errors.report(delivery.plugin, hook_of(delivery), error)
        started = Started(
            datetime.now(UTC) - timedelta(seconds=seconds), time.monotonic() - seconds
        )
        end = self._attempts.failed(delivery, started, DeliveryError(f"the plugin {error}"))
        self._ended.append(end)
        self._failing.note(end)
        return True

    def _settle(self) -> None:
        """Record, give back, and keep the leases of the rest."""
        recorded = self._store.record_attempts(self._owner, self._ended)
        self._count([end for end in self._ended if end.delivery.id in recorded])
        self._ended = []
        self._store.release_leases(self._owner, self._untried)
        self._untried = []
        self._renew()

    def _renew(self) -> None:
        """Keep the leases of what is in hand; what may be another's by now is not begun any more.

        A worker that was suspended, or could not reach the database, has kept none.
        """
        if self._leases_ended:
            for chain in [chain for chains in self._chains.values() for chain in chains]:
                chain.stop()
        elif time.monotonic() - self._renewed_at <= self._settings.lease_seconds / 3:
            return
        now = time.monotonic()
        self._store.renew_leases(self._owner, self.in_hand, self._settings.lease_seconds)
        self._renewed_at = now

    @property
    def _leases_ended(self) -> bool:
        return time.monotonic() - self._renewed_at > self._settings.lease_seconds

    def _count(self, ends: list[AttemptEnd]) -> None:
        dead: Counter[Target] = Counter()
        for end in ends:
            pending = end.state is DeliveryState.PENDING
            self.totals[end.delivery.plugin, "failed" if pending else end.state.value] += 1
            dead[end.delivery.key] += end.state is DeliveryState.DEAD
        for (plugin, target), count in (+dead).items():
            logger.error(
                "%d deliveries given up; to make them again: captioner events redeliver --dead",
                count,
                extra={"plugin": plugin, "target": target},
            )

    def _claim(self) -> bool:
        """Take what is due and what threads and targets have room for; False: nothing is left."""
        free = self._threads.free
        if self._stopping or not free:
            return False
        room = {key: self._room(key) for key in {*self._chains, *self._failing.targets}}
        limit = min(BATCH, free * CHAIN, sum(room.values()) + STRANGERS)
        left = Counter(plugin for plugin, _ in self._left)
        in_hand = set(self.in_hand)
        default_room = self._settings.per_target_in_flight * CHAIN
        claimed = self._store.claim_deliveries(
            self._owner,
            limit,
            self._settings.lease_seconds,
            room=room,
            default_room=default_room,
            without=[plugin for plugin, count in left.items() if count >= MOST_LEFT],
            after=self._place.begin(),
        )
        self._place.end(claimed, room, default_room, self._failing.targets)
        # Its lease had ended, as after a pause of the whole process; now it has a new one.
        claimed = [delivery for delivery in claimed if delivery.id not in in_hand]
        try:
            self._begin(claimed)
        except BaseException:
            begun = set(self.in_hand)
            self._untried += [one.id for one in claimed if one.id not in begun]
            raise
        return bool(claimed) or self._place.starving

    def _begin(self, claimed: list[Delivery]) -> None:
        if not claimed:
            return
        jobs = jobs_of(self._store, {delivery.event.job_id for delivery in claimed})
        by_target: dict[Target, list[Delivery]] = defaultdict(list)
        for delivery in claimed:
            by_target[delivery.key].append(delivery)
        for key, deliveries in by_target.items():
            slots = self._slots(key)
            for number in range(min(slots, len(deliveries))):
                chain = Chain(
                    deliveries[number::slots],
                    lambda delivery: self._make(delivery, jobs),
                    self._take,
                    self.wake,
                )
                self._chains.setdefault(key, []).append(chain)
                if self._stopping:
                    chain.stop()
                self._threads.run(chain)

    def _make(self, delivery: Delivery, jobs: Mapping[UUID, Job]) -> AttemptEnd | None:
        return None if self._leases_ended else self._attempts.make(delivery, jobs)

    def _take(self, delivery: Delivery, end: AttemptEnd | None) -> bool:
        """Told by a thread; a chain ends with the first that fails."""
        if end is None:
            logger.warning(
                "a delivery is left to others: its lease has ended", extra={"delivery": delivery.id}
            )
            return False
        self._news.put(end)
        return end.state is DeliveryState.DELIVERED

    def _slots(self, key: Target) -> int:
        """How many more chains a target may have; one that fails is tried by one alone."""
        most = 1 if key in self._failing.targets else self._settings.per_target_in_flight
        return max(0, most - len(self._chains.get(key, ())))

    def _room(self, key: Target) -> int:
        return self._slots(key) * (1 if key in self._failing.targets else CHAIN)

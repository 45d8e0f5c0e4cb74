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
from queue import Empty, SimpleQueue
from uuid import UUID

from captioner.chains import Chain, Threads
from captioner.deliveries import AttemptEnd, Delivery, Target
from captioner.delivering.apart import MOST_PROCESSES, Apart
from captioner.delivering.asking import jobs_of
from captioner.delivering.attempts import Attempts, hook_of
from captioner.delivering.health import Health
from captioner.delivering.leases import Leases
from captioner.delivering.place import Place
from captioner.delivering.shares import CHAIN, SLOW_SECONDS, Shares
from captioner.domain import Job
from captioner.errors import DeliveryError
from captioner.events import DeliveryState
from captioner.plugins import Plugins
from captioner.settings import EventSettings, Settings
from captioner.store import Store

#: Claimed by one statement; and looked at, of targets that nothing is known of.
BATCH = 256
STRANGERS = 64
#: What has ended waits so long for others, to be recorded together.
LINGER_SECONDS = 0.01

logger = logging.getLogger(__name__)

#: An attempt that was not made has no end.
Deliveries = Chain[Delivery, AttemptEnd | None]


class Dispatcher:
    """Claims deliveries and sees them through.

    `step` and `finish` are for one thread, the rest for any.
    """

    def __init__(
        self,
        store: Store,
        plugins: Plugins,
        owner: str,
        settings: EventSettings,
        processes: Settings | None,
    ) -> None:
        """Have nothing in hand.

        Args:
            store: the database.
            plugins: of this process.
            owner: this worker's id in `store`.
            settings: how events are delivered.
            processes: of the processes for deliveries whose worker was lost; None: there are none.
        """
        self._store = store
        self._plugins = plugins
        self._owner = owner
        self._settings = settings
        self._attempts = Attempts(store, plugins, settings.delays_seconds)
        self._apart = processes and Apart(processes, plugins.errors, self._attempts)
        self._threads = Threads(settings.threads, "deliver")
        #: How attempts ended, as the threads tell, or what was not tried; None: look what changed.
        self._news: SimpleQueue[AttemptEnd | Delivery | None] = SimpleQueue()
        self._chains: dict[Target, list[Deliveries]] = {}
        #: Of what is made in processes of its own, for whatever target.
        self._apart_chains: list[Deliveries] = []
        #: Left behind, and not yet back: of which plugin.
        self._left: list[tuple[str, Deliveries]] = []
        self._health = Health()
        self._shares = Shares(settings, self._health)
        self._place = Place(store.now)
        self._leases = Leases(settings.lease_seconds)
        #: From the claim until it is recorded or given back: a thread may have ended it long since.
        self._in_hand: set[int] = set()
        #: To be recorded, and to be given back.
        self._ended: list[AttemptEnd] = []
        self._untried: list[int] = []
        #: Claimed, and in no chain yet.
        self._unbegun: set[int] = set()
        self._wait_seconds = 0.0
        self._stopping = False
        #: Attempts by plugin and what became of them: `delivered`, `failed` or `dead`.
        self.totals: Counter[tuple[str, str]] = Counter()

    @property
    def in_hand(self) -> list[int]:
        """Leased to this worker and not recorded, by id."""
        return list(self._in_hand)

    def wake(self) -> None:
        """Have `step` look for deliveries at once."""
        self._news.put(None)

    def stop_taking(self) -> None:
        """From now on nothing is claimed, and no attempt is begun."""
        self._stopping = True
        for chain in self._all():
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
        if self._all():  # leases are to be renewed, and slow attempts to be noticed
            settings = self._settings
            soon = min(settings.lease_seconds / 3, settings.attempt_timeout_seconds, SLOW_SECONDS)
            self._wait_seconds = min(self._wait_seconds, soon)

    def finish(self, seconds: float) -> None:
        """Let what is being tried come to its end, for so long; give the rest back.

        Raises:
            StoreUnavailableError: the database cannot be reached; the leases end by themselves.
        """
        self.stop_taking()
        deadline = time.monotonic() + seconds
        while self._all() and time.monotonic() < deadline:
            self._collect(min(self._settings.poll_seconds, max(0.0, deadline - time.monotonic())))
            self._settle()
        self._threads.close()
        if self._apart:
            self._apart.close()
        self._settle()
        self._store.release_leases(self._owner, self.in_hand)

    def _all(self) -> list[Deliveries]:
        chains = [chain for some in list(self._chains.values()) for chain in list(some)]
        return [*chains, *list(self._apart_chains)]

    def _collect(self, wait_seconds: float) -> None:
        """What the threads have to tell, and what they have not told for too long."""
        news = None
        with contextlib.suppress(Empty):
            news = self._news.get(timeout=wait_seconds)
        if news:
            time.sleep(LINGER_SECONDS)
        # In this order: a chain has told how its last attempt ended before it returns.
        over = {chain for chain in self._all() if chain.returned}
        with contextlib.suppress(Empty):
            while True:
                if isinstance(news, Delivery):
                    self._untried.append(news.id)
                elif news:
                    self._ended.append(news)
                    self._health.note(news)
                news = self._news.get_nowait()
        aside = sum(chain.aside for chain in self._all())
        for chains in (*self._chains.values(), self._apart_chains):
            for chain in list(chains):
                if chain in over or (chains is not self._apart_chains and self._leave(chain)):
                    chains.remove(chain)
                    self._untried += [delivery.id for delivery in chain.waiting]
                elif aside < self._shares.most_aside and chain.set_aside(SLOW_SECONDS):
                    self._threads.replace()
                    aside += 1
        self._chains = {key: chains for key, chains in self._chains.items() if chains}
        self._left = [left for left in self._left if not left[1].returned]
        if self._apart and not self._apart_chains:
            self._apart.rest()

    def _leave(self, chain: Deliveries) -> bool:
        """Go on without a thread that has been at one delivery for too long."""
        aside = chain.aside
        left = chain.leave(self._settings.attempt_timeout_seconds)
        if left is None:
            return False
        delivery, seconds = left
        if not aside:
            self._threads.replace()
        self._left.append((delivery.plugin, chain))
        error = f"did not return within {self._settings.attempt_timeout_seconds:g} s"
        self._plugins.errors.report(delivery.plugin, hook_of(delivery), error)
        end = self._attempts.failed(
            delivery, self._attempts.start(seconds), DeliveryError(f"the plugin {error}")
        )
        self._ended.append(end)
        self._health.note(end)
        return True

    def _settle(self) -> None:
        """Record, give back, and keep the leases of the rest."""
        recorded = self._store.record_attempts(self._owner, self._ended)
        self._count([end for end in self._ended if end.delivery.id in recorded])
        self._in_hand.difference_update(end.delivery.id for end in self._ended)
        self._ended = []
        self._store.release_leases(self._owner, self._untried)
        self._in_hand.difference_update(self._untried)
        self._untried = []
        if self._leases.to_be_renewed:
            now = self._leases.now()
            held = self._store.renew_leases(self._owner, self.in_hand, self._leases.seconds)
            self._leases.renewed(held, now)

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
        room = self._shares.room(self._chains)
        after = self._place.begin()
        now = self._leases.now()
        claimed = self._store.claim_deliveries(
            self._owner,
            min(BATCH, free * CHAIN, sum(room.values()) + STRANGERS),
            self._leases.seconds,
            room=room,
            default_room=CHAIN,
            apart_room=(MOST_PROCESSES - len(self._apart_chains)) * CHAIN,
            without=self._shares.without(Counter(plugin for plugin, _ in self._left)),
            after=after,
        )
        failing = self._health.failing
        self._place.end(claimed, room, CHAIN, failing)
        if after is None:
            given = {delivery.key for delivery in claimed}
            self._health.put_behind([key for key in failing if room[key] and key not in given])
        # Its lease had ended, as after a pause of the whole process; now it has a new one.
        claimed = [delivery for delivery in claimed if delivery.id not in self._in_hand]
        ids = [delivery.id for delivery in claimed]
        self._in_hand.update(ids)
        self._leases.add(ids, now)
        self._begin(claimed)
        return bool(claimed) or self._place.starving

    def _begin(self, claimed: list[Delivery]) -> None:
        if not claimed:
            return
        # Given back unless a chain has them, whatever goes wrong here.
        self._unbegun = {delivery.id for delivery in claimed}
        try:
            self._begin_chains(claimed)
        finally:
            self._untried += self._unbegun
            self._unbegun = set()

    def _begin_chains(self, claimed: list[Delivery]) -> None:
        jobs = jobs_of(self._store, {delivery.event.job_id for delivery in claimed})
        by_target: dict[Target, list[Delivery]] = defaultdict(list)
        apart = []
        for delivery in claimed:
            if delivery.apart and self._apart:
                apart.append(delivery)
            else:
                by_target[delivery.key].append(delivery)
        for key, deliveries in by_target.items():
            running = self._chains.setdefault(key, [])
            self._run(deliveries, self._shares.chains(key, len(running)), jobs, running)
        self._run(apart, MOST_PROCESSES - len(self._apart_chains), jobs, self._apart_chains)

    def _run(
        self,
        deliveries: list[Delivery],
        most: int,
        jobs: Mapping[UUID, Job],
        running: list[Deliveries],
    ) -> None:
        """Begin as many chains, at most, of deliveries."""
        for number in range(min(most, len(deliveries))):
            chain = Chain(
                deliveries[number::most],
                lambda delivery: self._make(delivery, jobs),
                self._take,
                self.wake,
            )
            running.append(chain)
            self._unbegun.difference_update(delivery.id for delivery in chain.items)
            if self._stopping:
                chain.stop()
            self._threads.run(chain)

    def _make(self, delivery: Delivery, jobs: Mapping[UUID, Job]) -> AttemptEnd | None:
        if not self._leases.holds(delivery.id):
            logger.warning(
                "a delivery is left to others: its lease has ended", extra={"delivery": delivery.id}
            )
            return None
        attempts = self._apart if delivery.apart and self._apart else self._attempts
        return attempts.make(delivery, jobs)

    def _take(self, delivery: Delivery, end: AttemptEnd | None) -> bool:
        """Told by a thread; a chain ends with the first that fails."""
        if end is None:
            self._news.put(delivery)
            return False
        self._news.put(end)
        return end.state is DeliveryState.DELIVERED

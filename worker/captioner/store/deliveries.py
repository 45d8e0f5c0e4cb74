"""What dispatchers and people ask of the store: events to expand, deliveries to make, the log."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from captioner.deliveries import Attempt, AttemptEnd, Delivery, Expansion, Position, Target
from captioner.events import DeliveryState, Event
from captioner.store import delivery_attempts, delivery_claims, delivery_log, outbox
from captioner.store.transactions import Database


class Deliveries:
    """The part of `Store` that brings events to plugins. `limit` bounds each transaction."""

    _database: Database

    # Expanding events

    def unexpanded(self, limit: int, *, after: int = 0) -> dict[int, Event]:
        """Events whose deliveries are not written yet, by id, those above `after`, oldest first."""
        with self._database.reading() as connection:
            return outbox.unexpanded(connection, limit, after)

    def expand(self, expansions: Sequence[Expansion], *, now: datetime | None = None) -> set[int]:
        """Write the deliveries of events and mark these as expanded, in one transaction.

        An event that another worker has expanded, or is expanding, stays as it is.

        Returns:
            The ids of the events that were expanded.
        """
        if not expansions:
            return set()
        moment = self._database.moment(now)
        with self._database.transaction() as connection:
            return outbox.expand(connection, expansions, moment)

    # Delivering

    def claim_deliveries(
        self,
        owner: str,
        limit: int,
        lease_seconds: float,
        *,
        room: Mapping[Target, int] | None = None,
        default_room: int = 1,
        apart_room: int = 1,
        without: Mapping[str, Collection[str | None]] | None = None,
        after: Position | None = None,
        now: datetime | None = None,
    ) -> list[Delivery]:
        """Lease deliveries that are due, the longest due first.

        Args:
            owner: who tries them; only it may record how that ended.
            limit: how many at most, and how many are looked at.
            lease_seconds: others may have them after so long.
            room: how many of which target; those with none are passed over, however many wait.
            default_room: how many of each target that is not in `room`.
            apart_room: how many of those that a worker was lost with.
            without: plugins to leave out, each but for these targets.
            after: begin there, and not at the first of all that are due.
            now: the time to work with.

        Returns:
            The deliveries, now the owner's.
        """
        moment = self._database.moment(now)
        with self._database.transaction() as connection:
            return delivery_claims.claim_deliveries(
                connection,
                owner,
                limit,
                moment + timedelta(seconds=lease_seconds),
                room or {},
                default_room,
                apart_room,
                without or {},
                after,
                moment,
            )

    def record_attempts(
        self, owner: str, ends: Sequence[AttemptEnd], *, now: datetime | None = None
    ) -> set[int]:
        """Write how attempts ended, each with a line in the delivery's log.

        What is not leased to the owner any more, or had another attempt since it was claimed, stays
        as it is.

        Returns:
            The ids of the deliveries that were recorded.
        """
        if not ends:
            return set()
        moment = self._database.moment(now)
        with self._database.transaction() as connection:
            return delivery_attempts.record_attempts(connection, owner, ends, moment)

    def asked_apart(self) -> set[str]:
        """Plugins that a worker may have been lost with when it asked them for targets."""
        with self._database.reading() as connection:
            return delivery_claims.asked_apart(connection)

    def renew_leases(
        self,
        owner: str,
        ids: Collection[int],
        lease_seconds: float,
        *,
        now: datetime | None = None,
    ) -> set[int]:
        """Keep deliveries that the owner still has in hand.

        Returns:
            The ids of those that are the owner's still; others have had the rest.
        """
        if not ids:
            return set()
        expires_at = self._database.moment(now) + timedelta(seconds=lease_seconds)
        with self._database.statement() as connection:
            return delivery_claims.renew_leases(connection, owner, ids, expires_at)

    def release_leases(self, owner: str, ids: Collection[int]) -> None:
        """Give back deliveries that the owner has not tried."""
        if ids:
            with self._database.statement() as connection:
                delivery_claims.release_leases(connection, owner, ids)

    # The log

    def list_deliveries(
        self,
        state: DeliveryState | None = None,
        *,
        plugin: str | None = None,
        target: str | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> list[Delivery]:
        """One page of deliveries, newest first; the next begins before the last one's id."""
        with self._database.reading() as connection:
            return delivery_log.list_deliveries(connection, state, plugin, target, limit, before)

    def get_delivery(self, delivery_id: int) -> tuple[Delivery, list[Attempt]]:
        """One delivery and its attempts, the first one first.

        Raises:
            DeliveryNotFoundError: there is none.
        """
        with self._database.reading() as connection:
            return delivery_log.get_delivery(connection, delivery_id)

    def count_deliveries(self) -> dict[DeliveryState, int]:
        """How many deliveries are in each state; every state is there."""
        with self._database.reading() as connection:
            return delivery_log.count_deliveries(connection)

    def redeliver(self, ids: Collection[int], *, now: datetime | None = None) -> set[int]:
        """Make deliveries again from now on, by the whole schedule, whatever became of them.

        Returns:
            The ids of those; the others are unknown, or being tried just now.
        """
        moment = self._database.moment(now)
        with self._database.transaction() as connection:
            return delivery_log.redeliver(connection, ids, moment)

    def redeliver_event(self, event_id: int, *, now: datetime | None = None) -> set[int]:
        """Make an event's deliveries again, and ask the plugins again whom it is for.

        Returns:
            The ids of the deliveries that are made again.

        Raises:
            EventNotFoundError: there is none.
        """
        moment = self._database.moment(now)
        with self._database.transaction() as connection:
            return delivery_log.redeliver_event(connection, event_id, moment)

    def redeliver_dead(
        self,
        limit: int,
        *,
        plugin: str | None = None,
        target: str | None = None,
        now: datetime | None = None,
    ) -> set[int]:
        """Make dead deliveries again, the oldest first; the ids of those."""
        moment = self._database.moment(now)
        with self._database.transaction() as connection:
            return delivery_log.redeliver_dead(connection, plugin, target, limit, moment)

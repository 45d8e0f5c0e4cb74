"""What housekeeping asks of the store: who lives, what has no message, what is over."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Engine

from captioner.domain import Lane
from captioner.plugin_errors import PluginErrorCount
from captioner.store import dispatches, endings, owners, plugin_errors, retention, workers
from captioner.store.retention import Ended
from captioner.store.transactions import Database


class Lost(NamedTuple):
    """What became of silent workers and their jobs."""

    #: Workers whose rows were deleted.
    workers: int
    #: Jobs put back.
    requeued: int
    #: Jobs that were lost too often and failed (`worker_lost`).
    failed: int


class Upkeep:
    """The part of `Store` that no single job asks for. `limit` bounds each transaction."""

    def __init__(self, engine: Engine) -> None:
        """`engine` is from `create_store_engine`."""
        self._database = Database(engine)

    def now(self) -> datetime:
        """The database's time, by which all machines go; nothing is waited for after the first."""
        return self._database.clock.now()

    # Workers and leases

    def register_worker(
        self,
        name: str,
        *,
        worker_id: str | None = None,
        pid: int | None = None,
        queues: Sequence[str] = (),
        now: datetime | None = None,
    ) -> str:
        """Announce a worker process, this one by default.

        Args:
            name: for people, such as `gpu0@host`.
            worker_id: the one it had, when `heartbeat` says that it is no longer known.
            pid: its process id.
            queues: what it consumes.
            now: the time to work with.

        Returns:
            Its id, unlike that of any process before: the `owner` of its claims.
        """
        moment = self._database.moment(now)
        with self._database.statement() as connection:
            return workers.register_worker(
                connection, name, worker_id, pid or os.getpid(), queues, moment
            )

    def heartbeat(self, worker_id: str, *, now: datetime | None = None) -> bool:
        """Say that a worker lives, which is the lease of every job it has claimed.

        Returns:
            False when it was silent for so long that it is no longer known. Its jobs are being put
            back, and what it records for those is refused. It may go on after `register_worker`
            with the same id; jobs not put back until then are its own still.
        """
        moment = self._database.moment(now)
        with self._database.statement() as connection:
            return workers.heartbeat(connection, worker_id, moment)

    def unregister_worker(self, worker_id: str) -> None:
        """Take a worker off the list; jobs it still has are put back by the next sweep."""
        with self._database.statement() as connection:
            workers.unregister_worker(connection, worker_id)

    def expire_workers(
        self, silent_for: timedelta, limit: int, *, max_losses: int, now: datetime | None = None
    ) -> Lost:
        """Delete workers without a heartbeat for that long, and put jobs of unknown owners back.

        The attempt of a job put back stays, the next claim raises it: whatever its former owner
        records, before or after that claim, is refused. Lost for the `max_losses`th time it ends as
        failed (`worker_lost`) instead, because it may be what kills its workers.
        """
        moment = self._database.moment(now)
        # In transactions of their own: each locks its jobs in one order, as everybody does, and one
        # that did so twice could meet another half-way.
        with self._database.statement() as connection:
            silent = owners.forget_silent(connection, moment - silent_for)
        with self._database.transaction() as connection:
            failed = owners.give_up(connection, limit, max_losses, moment)
        with self._database.statement() as connection:
            requeued = owners.take_back(connection, limit, max_losses)
        return Lost(silent, requeued, len(failed))

    def try_acquire(
        self, name: str, holder: str, ttl: timedelta, *, now: datetime | None = None
    ) -> bool:
        """Take the lease `name` until `ttl` from now, or renew it; False when another has it."""
        moment = self._database.moment(now)
        with self._database.statement() as connection:
            return workers.try_acquire(connection, name, holder, ttl, moment)

    def lease_holder(self, name: str) -> str | None:
        """Who has the lease `name`; also who had it last, when it ended and was not given up."""
        with self._database.reading() as connection:
            return workers.lease_holder(connection, name)

    def release(self, name: str, holder: str) -> None:
        """Give the lease `name` up, if it is still the holder's."""
        with self._database.statement() as connection:
            workers.release(connection, name, holder)

    # Messages

    def mark_dispatched(
        self, messages: Sequence[Sequence[UUID]], *, now: datetime | None = None
    ) -> None:
        """Stamp jobs whose messages the broker has taken; the ids of each message by themselves."""
        if not any(messages):
            return
        moment = self._database.moment(now)
        with self._database.statement() as connection:
            dispatches.mark_dispatched(connection, messages, moment)

    def undispatched(self, created_before: datetime, limit: int) -> list[tuple[UUID, Lane]]:
        """Queued jobs that need a message now, oldest first, with the lane each belongs to.

        They were never given one, or were put back since. Those that wait for their time are not
        among them until `release_due`.
        """
        with self._database.reading() as connection:
            return dispatches.undispatched(connection, created_before, limit)

    def release_due(self, limit: int, *, now: datetime | None = None) -> int:
        """Make retries whose time has come `undispatched`; how many."""
        moment = self._database.moment(now)
        with self._database.statement() as connection:
            return dispatches.release_due(connection, limit, moment)

    def count_dispatches(self, lane: Lane, before: datetime) -> int:
        """How many messages, sent before then, the lane's queued jobs are in.

        The broker's list is as long at least, unless messages were lost or are in a worker's hand.
        """
        with self._database.reading() as connection:
            return dispatches.count_dispatches(connection, lane, before)

    def newest_at_work(self, lane: Lane) -> datetime | None:
        """When the message was sent that is the newest of the lane's jobs in processing."""
        with self._database.reading() as connection:
            return dispatches.newest_at_work(connection, lane)

    def oldest_dispatches(self, lane: Lane, before: datetime, limit: int) -> dict[UUID, list[UUID]]:
        """The queued jobs of the lane's messages sent before then, by message, oldest first.

        At most `limit` jobs; of the last message some may be missing.
        """
        with self._database.reading() as connection:
            return dispatches.oldest_dispatches(connection, lane, before, limit)

    # Plugins

    def count_plugin_errors(self, counts: Sequence[PluginErrorCount]) -> None:
        """Add what this process counted to what all processes did."""
        if not counts:
            return
        with self._database.statement() as connection:
            plugin_errors.count_plugin_errors(connection, counts)

    def plugin_errors(self) -> list[PluginErrorCount]:
        """What was counted, by plugin and hook."""
        with self._database.reading() as connection:
            return plugin_errors.plugin_errors(connection)

    # Ends

    def expire_overdue(self, limit: int, *, now: datetime | None = None) -> list[UUID]:
        """End queued jobs whose deadline has passed as `expired`, with one event each.

        Returns:
            The ids of those. A job in processing is its worker's to end.
        """
        moment = self._database.moment(now)
        with self._database.transaction() as connection:
            return endings.expire_overdue(connection, limit, moment)

    def ended(
        self, finished_before: datetime, limit: int, *, after: Ended | None = None
    ) -> list[Ended]:
        """One page of the jobs that ended before then, oldest first, or the next `after` a job."""
        with self._database.reading() as connection:
            return retention.ended(connection, finished_before, limit, after)

    def delete_over(self, ids: Collection[UUID]) -> int:
        """Delete those of these jobs that have ended and whom nobody is to be told of any more.

        Returns:
            How many; captions, events and deliveries go with each.
        """
        if not ids:
            return 0
        with self._database.transaction() as connection:
            return retention.delete_over(connection, ids)

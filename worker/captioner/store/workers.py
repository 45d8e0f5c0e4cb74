"""Worker processes and leases: who is alive, and who does what only one may do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import uuid4

from sqlalchemy import Connection, delete, or_, select, update

from captioner.store.models import MAX_OWNER_CHARACTERS, LeaseRow, WorkerRow
from captioner.store.statements import insert_into

_UNIQUE_CHARACTERS = 12


def register_worker(
    connection: Connection,
    name: str,
    worker_id: str | None,
    pid: int,
    queues: Sequence[str],
    now: datetime,
) -> str:
    """Insert a worker process; its id, by default one unlike any process's before it."""
    name = name[: MAX_OWNER_CHARACTERS - _UNIQUE_CHARACTERS - 1]
    worker_id = worker_id or f"{name}/{uuid4().hex[:_UNIQUE_CHARACTERS]}"
    row = insert_into(connection, WorkerRow).values(
        id=worker_id,
        name=name,
        pid=pid,
        queues=list(queues),
        started_at=now,
        heartbeat_at=now,
    )
    connection.execute(row.on_conflict_do_nothing())
    return worker_id


def heartbeat(connection: Connection, worker_id: str, now: datetime) -> bool:
    """Renew a worker's lease; False when its row is gone and its jobs may be another's."""
    statement = update(WorkerRow).where(WorkerRow.id == worker_id).values(heartbeat_at=now)
    return bool(connection.execute(statement).rowcount)


def unregister_worker(connection: Connection, worker_id: str) -> None:
    """Delete a worker's row."""
    connection.execute(delete(WorkerRow).where(WorkerRow.id == worker_id))


def try_acquire(
    connection: Connection, name: str, holder: str, ttl: timedelta, now: datetime
) -> bool:
    """Take or renew a lease, in one statement."""
    wanted = insert_into(connection, LeaseRow).values(
        name=name, holder=holder, expires_at=now + ttl
    )
    statement = wanted.on_conflict_do_update(
        index_elements=[LeaseRow.name],
        set_={"holder": wanted.excluded.holder, "expires_at": wanted.excluded.expires_at},
        where=or_(LeaseRow.holder == holder, LeaseRow.expires_at <= now),
    ).returning(LeaseRow.name)
    return connection.scalar(statement) is not None


def lease_holder(connection: Connection, name: str) -> str | None:
    """Who has a lease, or had it last and did not give it up."""
    return connection.scalar(select(LeaseRow.holder).where(LeaseRow.name == name))


def release(connection: Connection, name: str, holder: str) -> None:
    """Give a lease up, if it is still the holder's."""
    connection.execute(delete(LeaseRow).where(LeaseRow.name == name, LeaseRow.holder == holder))

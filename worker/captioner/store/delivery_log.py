"""What people ask of deliveries: which there are, how each went, and to make them again."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, func, select, update

from captioner.deliveries import Attempt, Delivery
from captioner.errors import DeliveryNotFoundError, EventNotFoundError
from captioner.events import DeliveryState
from captioner.store.delivery_rows import DELIVERY_COLUMNS, FREE, delivery_from_row, unleased
from captioner.store.models import (
    DeliveryAttemptRow,
    DeliveryRow,
    EventRow,
    JobRow,
    delivery_in_state,
)
from captioner.store.statements import among_numbers


def list_deliveries(
    connection: Connection,
    state: DeliveryState | None,
    plugin: str | None,
    target: str | None,
    limit: int,
    before: int | None,
) -> list[Delivery]:
    """One page of deliveries, newest first."""
    query = select(*DELIVERY_COLUMNS).join(EventRow, EventRow.id == DeliveryRow.event_id)
    if state is not None:
        query = query.where(delivery_in_state(state))
    if plugin is not None:
        query = query.where(DeliveryRow.plugin == plugin)
    if target is not None:
        query = query.where(DeliveryRow.target == target)
    if before is not None:
        query = query.where(DeliveryRow.id < before)
    query = query.order_by(DeliveryRow.id.desc()).limit(limit)
    return [delivery_from_row(row) for row in connection.execute(query)]


def get_delivery(connection: Connection, delivery_id: int) -> tuple[Delivery, list[Attempt]]:
    """One delivery and its attempts, the first one first.

    Raises:
        DeliveryNotFoundError: there is none.
    """
    query = select(*DELIVERY_COLUMNS).join(EventRow, EventRow.id == DeliveryRow.event_id)
    row = connection.execute(query.where(DeliveryRow.id == delivery_id)).one_or_none()
    if row is None:
        raise DeliveryNotFoundError(delivery_id)
    attempts = (
        select(DeliveryAttemptRow.__table__)
        .where(DeliveryAttemptRow.delivery_id == delivery_id)
        .order_by(DeliveryAttemptRow.number)
    )
    return delivery_from_row(row), [
        Attempt(
            number=one.number,
            started_at=one.started_at,
            duration_seconds=one.duration_seconds,
            status=one.status,
            error=one.error,
            excerpt=one.excerpt or "",
        )
        for one in connection.execute(attempts)
    ]


def count_deliveries(connection: Connection) -> dict[DeliveryState, int]:
    """How many deliveries are in each state; all states are there."""
    query = select(DeliveryRow.state, func.count()).group_by(DeliveryRow.state)
    return dict.fromkeys(DeliveryState, 0) | dict(connection.execute(query).all())


def redeliver(connection: Connection, ids: Collection[int], now: datetime) -> set[int]:
    """Make deliveries again, whatever became of them; see `Store.redeliver`."""
    which = among_numbers(connection, DeliveryRow.id, ids)
    _keep_jobs(connection, EventRow.id.in_(select(DeliveryRow.event_id).where(which)))
    return _again(connection, which, now)


def redeliver_event(connection: Connection, event_id: int, now: datetime) -> set[int]:
    """Make an event's deliveries again, and have it expanded again.

    Raises:
        EventNotFoundError: there is none.
    """
    _keep_jobs(connection, EventRow.id == event_id)
    asked = update(EventRow).where(EventRow.id == event_id).values(expanded_at=None)
    if not connection.execute(asked).rowcount:
        raise EventNotFoundError(event_id)
    return _again(connection, DeliveryRow.event_id == event_id, now)


def redeliver_dead(
    connection: Connection, plugin: str | None, target: str | None, limit: int, now: datetime
) -> set[int]:
    """Make dead deliveries again, the oldest first."""
    query = select(DeliveryRow.id).where(delivery_in_state(DeliveryState.DEAD))
    if plugin is not None:
        query = query.where(DeliveryRow.plugin == plugin)
    if target is not None:
        query = query.where(DeliveryRow.target == target)
    ids = connection.scalars(query.order_by(DeliveryRow.id).limit(limit)).all()
    return redeliver(connection, ids, now)


def _keep_jobs(connection: Connection, events: ColumnElement[bool]) -> None:
    """Have nobody delete the jobs of events until this transaction has ended.

    Who was about to waits, and finds then that they are needed; what was deleted while this waited
    is not there for the statements that follow.
    """
    jobs = select(JobRow.id).where(JobRow.id.in_(select(EventRow.job_id).where(events)))
    connection.execute(jobs.order_by(JobRow.id).with_for_update(read=True))


def _again(connection: Connection, which: ColumnElement[bool], now: datetime) -> set[int]:
    # In one order for everybody, as when attempts are recorded.
    idle = select(DeliveryRow.id).where(which, unleased(now)).order_by(DeliveryRow.id)
    ids = set(connection.scalars(idle.with_for_update()))
    if ids:
        statement = update(DeliveryRow).where(among_numbers(connection, DeliveryRow.id, ids))
        connection.execute(
            statement.values(
                state=DeliveryState.PENDING,
                attempts=0,
                due_at=now,
                finished_at=None,
                **FREE,
            )
        )
    return ids

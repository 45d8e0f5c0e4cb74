"""How attempts of deliveries ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from captioner.deliveries import AttemptEnd
from captioner.events import MAX_EXCERPT_CHARACTERS, DeliveryState
from captioner.store.delivery_rows import FREE, held
from captioner.store.mapping import clean_message
from captioner.store.models import DeliveryAttemptRow, DeliveryRow, delivery_in_state
from captioner.store.outbox import add_deliveries
from captioner.store.statements import among_numbers


def record_attempts(
    connection: Connection, owner: str, ends: Sequence[AttemptEnd], now: datetime
) -> set[int]:
    """Write how attempts ended and log them; the ids of the deliveries that were still theirs."""
    by_id = {end.delivery.id: end for end in ends}
    # In one order for everybody: two that locked the same rows otherwise would wait for each other.
    mine = (
        select(DeliveryRow.id, DeliveryRow.attempts)
        .where(*held(connection, owner, by_id), delivery_in_state(DeliveryState.PENDING))
        .order_by(DeliveryRow.id)
        .with_for_update()
    )
    theirs = [
        by_id[row.id]
        for row in connection.execute(mine)
        if row.attempts == by_id[row.id].delivery.attempts
    ]
    _replace(connection, [end for end in theirs if end.targets is not None], now)
    _write(connection, [end for end in theirs if end.targets is None], now)
    return {end.delivery.id for end in theirs}


def _replace(connection: Connection, answered: Sequence[AttemptEnd], now: datetime) -> None:
    """What a plugin named when it was asked again, in the place of the question."""
    if not answered:
        return
    by_id = {end.delivery.id: end for end in answered}
    asked = delete(DeliveryRow).where(among_numbers(connection, DeliveryRow.id, by_id))
    rows = connection.execute(asked.returning(DeliveryRow.id, DeliveryRow.event_id)).all()
    named = ((row.event_id, one) for row in rows for one in by_id[row.id].targets or ())
    add_deliveries(connection, named, now)


def _write(connection: Connection, ends: Sequence[AttemptEnd], now: datetime) -> None:
    if not ends:
        return
    numbers = _last_numbers(connection, [end.delivery.id for end in ends])
    connection.execute(
        insert(DeliveryAttemptRow),
        [
            {
                "delivery_id": end.delivery.id,
                "number": numbers.get(end.delivery.id, 0) + 1,
                "started_at": end.started_at,
                "duration_seconds": end.duration_seconds,
                "status": end.status,
                "error": end.error and clean_message(end.error),
                "excerpt": clean_message(end.excerpt[:MAX_EXCERPT_CHARACTERS]) or None,
            }
            for end in ends
        ],
    )
    ended = update(DeliveryRow).where(DeliveryRow.id == bindparam("delivery_id"))
    connection.execute(
        ended.values(
            state=bindparam("new_state"),
            attempts=DeliveryRow.attempts + 1,
            due_at=bindparam("new_due_at"),
            last_status=bindparam("status"),
            last_error=bindparam("error"),
            apart=bindparam("made_apart"),
            finished_at=bindparam("ended_at"),
            **FREE,
        ),
        [
            {
                "delivery_id": end.delivery.id,
                "new_state": end.state,
                "new_due_at": end.due_at,
                "status": end.status,
                "error": end.error and clean_message(end.error),
                "made_apart": end.apart,
                "ended_at": None if end.state is DeliveryState.PENDING else now,
            }
            for end in ends
        ],
    )


def _last_numbers(connection: Connection, ids: Sequence[int]) -> dict[int, int]:
    """The number of each delivery's last attempt, of those that had one."""
    query = (
        select(DeliveryAttemptRow.delivery_id, func.max(DeliveryAttemptRow.number))
        .where(among_numbers(connection, DeliveryAttemptRow.delivery_id, ids))
        .group_by(DeliveryAttemptRow.delivery_id)
    )
    return dict(connection.execute(query).all())

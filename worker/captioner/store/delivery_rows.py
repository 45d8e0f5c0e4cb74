"""Rows of deliveries: what is read of them, and which are in whose hands."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, or_

from captioner.deliveries import Delivery
from captioner.store.models import DeliveryRow
from captioner.store.outbox import EVENT_COLUMNS, event_from_row
from captioner.store.statements import among_numbers

#: What `delivery_from_row` reads.
DELIVERY_COLUMNS = (
    DeliveryRow.id,
    DeliveryRow.plugin,
    DeliveryRow.target,
    DeliveryRow.state,
    DeliveryRow.attempts,
    DeliveryRow.due_at,
    DeliveryRow.last_status,
    DeliveryRow.last_error,
    DeliveryRow.created_at,
    DeliveryRow.finished_at,
    DeliveryRow.apart,
    *EVENT_COLUMNS,
)
#: In nobody's hands.
FREE = {"lease_owner": None, "lease_expires_at": None}


def delivery_from_row(row: Row[Any]) -> Delivery:
    """The delivery of one row of `DELIVERY_COLUMNS`."""
    return Delivery(
        id=row.id,
        event=event_from_row(row),
        plugin=row.plugin,
        target=row.target,
        state=row.state,
        attempts=row.attempts,
        due_at=row.due_at,
        last_status=row.last_status,
        last_error=row.last_error,
        created_at=row.created_at,
        finished_at=row.finished_at,
        apart=row.apart,
    )


def unleased(now: datetime) -> ColumnElement[bool]:
    """A condition: nobody is trying it."""
    return or_(DeliveryRow.lease_expires_at.is_(None), DeliveryRow.lease_expires_at <= now)


def held(connection: Connection, owner: str, ids: Collection[int]) -> list[ColumnElement[bool]]:
    """Conditions: it is one of these, and the owner is trying it."""
    return [among_numbers(connection, DeliveryRow.id, ids), DeliveryRow.lease_owner == owner]

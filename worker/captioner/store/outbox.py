"""The outbox: events whose deliveries are not written yet, and writing them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects import postgresql

from captioner.deliveries import Expansion, NewDelivery
from captioner.events import DeliveryState, Event
from captioner.store.mapping import clean_message
from captioner.store.models import DeliveryRow, EventRow
from captioner.store.statements import among_numbers, insert_into

#: What `event_from_row` reads, under names that no other table uses.
EVENT_COLUMNS = (
    EventRow.id.label("event_id"),
    EventRow.job_id,
    EventRow.type.label("event_type"),
    EventRow.state.label("event_state"),
    EventRow.attempt.label("event_attempt"),
    EventRow.occurred_at,
    EventRow.data,
)


def event_from_row(row: Row[Any]) -> Event:
    """The event of one row of `EVENT_COLUMNS`."""
    return Event(
        id=row.event_id,
        job_id=row.job_id,
        type=row.event_type,
        state=row.event_state,
        attempt=row.event_attempt,
        occurred_at=row.occurred_at,
        error_code=row.data.get("error_code"),
        timings=tuple(row.data.get("timings", {}).items()),
    )


def unexpanded(connection: Connection, limit: int, after: int) -> dict[int, Event]:
    """Events without deliveries whose id is greater, by id, oldest first.

    Ids are not committed in order: only one that begins at 0 again sees them all.
    """
    query = (
        select(*EVENT_COLUMNS)
        .where(EventRow.expanded_at.is_(None), EventRow.id > after)
        .order_by(EventRow.id)
        .limit(limit)
    )
    return {row.event_id: event_from_row(row) for row in connection.execute(query)}


def expand(connection: Connection, expansions: Sequence[Expansion], now: datetime) -> set[int]:
    """Write the deliveries of events that are not expanded, and stamp these; their ids."""
    waiting = select(EventRow.id).where(
        among_numbers(connection, EventRow.id, [one.event_id for one in expansions]),
        EventRow.expanded_at.is_(None),
    )
    # What another worker is expanding just now is left to it.
    locked = waiting.order_by(EventRow.id).with_for_update(skip_locked=True)
    ours = set(connection.scalars(locked))
    if not ours:
        return ours
    stamp = update(EventRow).where(among_numbers(connection, EventRow.id, ours))
    connection.execute(stamp.values(expanded_at=now))
    add_deliveries(
        connection,
        (
            (one.event_id, delivery)
            for one in expansions
            if one.event_id in ours
            for delivery in one.deliveries
        ),
        now,
    )
    return ours


def add_deliveries(
    connection: Connection, deliveries: Iterable[tuple[int, NewDelivery]], now: datetime
) -> None:
    """Insert deliveries of events, by the events' ids; those that are there stay as they are."""
    rows = [
        {
            "event_id": event_id,
            "plugin": delivery.plugin,
            "target": delivery.target,
            "due_at": delivery.due_at,
            "last_error": delivery.error and clean_message(delivery.error),
            "apart": delivery.apart,
        }
        for event_id, delivery in deliveries
    ]
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        given = json.dumps(rows, default=datetime.isoformat)
        connection.execute(_insert_given(), {"given": given, "now": now})
        return
    same = {"state": DeliveryState.PENDING, "attempts": 0, "created_at": now}
    insert = insert_into(connection, DeliveryRow).on_conflict_do_nothing()
    connection.execute(insert, [row | same for row in rows])


@functools.cache
def _insert_given() -> postgresql.Insert:
    """All in one statement: by one for each, PostgreSQL took 1.8 times as long."""
    columns = DeliveryRow.__table__.columns
    names = ("event_id", "plugin", "target", "due_at", "last_error", "apart")
    rows = func.jsonb_to_recordset(cast(bindparam("given", type_=Text()), postgresql.JSONB()))
    given = rows.table_valued(*(column(name, columns[name].type) for name in names))
    given = given.render_derived(name="given", with_types=True)
    same = {
        "state": literal(DeliveryState.PENDING, columns["state"].type),
        "attempts": literal(0),
        "created_at": bindparam("now", type_=columns["created_at"].type),
    }
    everything = select(*given.c, *same.values())
    insert = postgresql.insert(DeliveryRow).from_select([*names, *same], everything)
    return insert.on_conflict_do_nothing()

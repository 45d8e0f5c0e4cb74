"""Who makes which delivery, and how its attempts ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Update,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.orm import aliased

from captioner.deliveries import AttemptEnd, Delivery, Position, Target
from captioner.events import DeliveryState
from captioner.store.mapping import clean_message
from captioner.store.models import (
    DeliveryAttemptRow,
    DeliveryRow,
    EventRow,
    delivery_in_state,
)
from captioner.store.outbox import EVENT_COLUMNS, add_deliveries, event_from_row
from captioner.store.statements import among_numbers

#: Of an answer, kept in the log.
MAX_EXCERPT_CHARACTERS = 1_024
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
_FREE = {"lease_owner": None, "lease_expires_at": None}


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
    """Nobody is trying it."""
    return or_(DeliveryRow.lease_expires_at.is_(None), DeliveryRow.lease_expires_at <= now)


def claim_deliveries(
    connection: Connection,
    owner: str,
    limit: int,
    expires_at: datetime,
    room: Mapping[Target, int],
    default_room: int,
    apart_room: int,
    without: Mapping[str, Collection[str | None]],
    after: Position | None,
    now: datetime,
) -> list[Delivery]:
    """Lease deliveries that are due, the longest due first; see `Store.claim_deliveries`."""
    due = (
        select(*DELIVERY_COLUMNS, DeliveryRow.lease_owner, _deadly().label("deadly"))
        .join(EventRow, EventRow.id == DeliveryRow.event_id)
        .where(
            delivery_in_state(DeliveryState.PENDING),
            DeliveryRow.due_at <= now,
            *_allowed([key for key, free in room.items() if free < 1], without),
            *_from(after),
            *(_in_this_process(owner) if apart_room < 1 else ()),
            unleased(now),
        )
        .order_by(DeliveryRow.due_at, DeliveryRow.id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=DeliveryRow)
    )
    if connection.dialect.name == "postgresql":
        # Without statistics of a table that grows so fast, all that is due would be read and sorted
        # for each claim, instead of the first few in the order of the index.
        connection.execute(text("SET LOCAL enable_bitmapscan = off"))
    rows = connection.execute(due).all()
    lost = {row.id for row in rows if row.lease_owner not in (None, owner)}  # nobody gave it back
    deadly = {(row.plugin, row.target) for row in rows if row.deadly or row.id in lost}
    taken: Counter[Target] = Counter()
    chosen = []
    for row in rows:
        delivery = delivery_from_row(row)
        delivery = replace(delivery, apart=delivery.apart or delivery.key in deadly)
        if taken[delivery.key] >= room.get(delivery.key, default_room):
            continue
        if delivery.apart and apart_room < 1:
            continue
        apart_room -= delivery.apart
        taken[delivery.key] += 1
        chosen.append(delivery)
    if chosen:
        ids = [delivery.id for delivery in chosen]
        lease = update(DeliveryRow).where(among_numbers(connection, DeliveryRow.id, ids))
        connection.execute(lease.values(lease_owner=owner, lease_expires_at=expires_at))
    if lost:
        # Those that are not chosen, too: all must know of them.
        apart = update(DeliveryRow).where(among_numbers(connection, DeliveryRow.id, lost))
        connection.execute(apart.values(apart=True))
    return chosen


def _allowed(
    full: Sequence[Target], without: Mapping[str, Collection[str | None]]
) -> list[ColumnElement[bool]]:
    """Conditions that the index of pending deliveries answers alone, however many it passes over.

    In SQL `NULL NOT IN (…)` is never true; no plugin may call a target by an empty text.
    """
    conditions: list[ColumnElement[bool]] = []
    if full:
        key = tuple_(DeliveryRow.plugin, func.coalesce(DeliveryRow.target, ""))
        conditions.append(key.not_in([(plugin, target or "") for plugin, target in full]))
    for plugin, but in without.items():
        others = DeliveryRow.plugin != plugin
        kept = [target or "" for target in but]
        named = func.coalesce(DeliveryRow.target, "").in_(kept)
        conditions.append(or_(others, named) if kept else others)
    return conditions


def _in_this_process(owner: str) -> list[ColumnElement[bool]]:
    """No worker was lost with it, nor with another to its target that is not made yet."""
    given_back = or_(DeliveryRow.lease_owner.is_(None), DeliveryRow.lease_owner == owner)
    return [DeliveryRow.apart.is_(False), given_back, ~_deadly()]


def _deadly() -> ColumnElement[bool]:
    """A worker was lost with one to the same target: one look into an index of few rows."""
    other = aliased(DeliveryRow)
    same = exists().where(other.apart, other.plugin == DeliveryRow.plugin)
    both_ask = and_(DeliveryRow.target.is_(None), other.target.is_(None))
    return or_(same.where(other.target == DeliveryRow.target), same.where(both_ask))


def asked_apart(connection: Connection) -> set[str]:
    """The plugins of questions that are made apart: `_deadly`, before there is a row of one."""
    questions = select(DeliveryRow.plugin).where(DeliveryRow.apart, DeliveryRow.target.is_(None))
    return set(connection.scalars(questions.distinct()))


def _from(after: Position | None) -> list[ColumnElement[bool]]:
    if after is None:
        return []
    due_at, delivery_id = after
    place = tuple_(literal(due_at, DeliveryRow.due_at.type), literal(delivery_id))
    return [tuple_(DeliveryRow.due_at, DeliveryRow.id) > place]


def renew_leases(
    connection: Connection, owner: str, ids: Collection[int], expires_at: datetime
) -> set[int]:
    """Keep what the owner still has in hand; the ids of what is not another's by now."""
    statement = _update_held(connection, owner, ids)
    renewed = statement.values(lease_expires_at=expires_at).returning(DeliveryRow.id)
    return set(connection.scalars(renewed))


def release_leases(connection: Connection, owner: str, ids: Collection[int]) -> None:
    """Let others have what the owner did not try."""
    connection.execute(_update_held(connection, owner, ids).values(_FREE))


def _update_held(connection: Connection, owner: str, ids: Collection[int]) -> Update:
    """Locked in one order, as everybody does: two would wait for each other otherwise."""
    mine = select(DeliveryRow.id).where(*_held(connection, owner, ids))
    rows = mine.order_by(DeliveryRow.id).with_for_update().cte("mine")
    return update(DeliveryRow).where(
        DeliveryRow.id.in_(select(rows.c.id)), DeliveryRow.lease_owner == owner
    )


def _held(connection: Connection, owner: str, ids: Collection[int]) -> list[ColumnElement[bool]]:
    return [among_numbers(connection, DeliveryRow.id, ids), DeliveryRow.lease_owner == owner]


def record_attempts(
    connection: Connection, owner: str, ends: Sequence[AttemptEnd], now: datetime
) -> set[int]:
    """Write how attempts ended and log them; the ids of the deliveries that were still theirs."""
    by_id = {end.delivery.id: end for end in ends}
    # In one order for everybody: two that locked the same rows otherwise would wait for each other.
    mine = (
        select(DeliveryRow.id, DeliveryRow.attempts)
        .where(*_held(connection, owner, by_id), delivery_in_state(DeliveryState.PENDING))
        .order_by(DeliveryRow.id)
        .with_for_update()
    )
    held = [
        by_id[row.id]
        for row in connection.execute(mine)
        if row.attempts == by_id[row.id].delivery.attempts
    ]
    _replace(connection, [end for end in held if end.targets is not None], now)
    _write(connection, [end for end in held if end.targets is None], now)
    return {end.delivery.id for end in held}


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
            **_FREE,
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

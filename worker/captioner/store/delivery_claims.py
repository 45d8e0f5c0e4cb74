"""Who makes which delivery."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    Update,
    and_,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.orm import aliased

from captioner.deliveries import Delivery, Position, Target
from captioner.events import DeliveryState
from captioner.store.delivery_rows import DELIVERY_COLUMNS, FREE, delivery_from_row, held, unleased
from captioner.store.models import DeliveryRow, EventRow, delivery_in_state
from captioner.store.statements import among_numbers


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
    statement = _updateheld(connection, owner, ids)
    renewed = statement.values(lease_expires_at=expires_at).returning(DeliveryRow.id)
    return set(connection.scalars(renewed))


def release_leases(connection: Connection, owner: str, ids: Collection[int]) -> None:
    """Let others have what the owner did not try."""
    connection.execute(_updateheld(connection, owner, ids).values(FREE))


def _updateheld(connection: Connection, owner: str, ids: Collection[int]) -> Update:
    """Locked in one order, as everybody does: two would wait for each other otherwise."""
    mine = select(DeliveryRow.id).where(*held(connection, owner, ids))
    rows = mine.order_by(DeliveryRow.id).with_for_update().cte("mine")
    return update(DeliveryRow).where(
        DeliveryRow.id.in_(select(rows.c.id)), DeliveryRow.lease_owner == owner
    )

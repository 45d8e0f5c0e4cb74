"""Column types that mean the same on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, DateTime, Enum, TypeDecorator
from sqlalchemy.dialects.postgresql import JSONB

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Dialect

#: JSON for values the database itself need not look into; None is stored as NULL.
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class UtcDateTime(TypeDecorator[datetime]):
    """A moment, always aware and always UTC in Python.

    SQLite has no time zones and would hand back naive times, and PostgreSQL hands them back in the
    session's zone; a naive time is refused because nobody can know which moment it means.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC; without the zone where the database could not keep it."""
        if value is None:
            return None
        value = utc(value)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def result_processor(
        self, dialect: Dialect, coltype: object
    ) -> Callable[[Any], datetime | None] | None:
        """Aware, in UTC. One call a value instead of SQLAlchemy's two: a claimed job has six."""
        if dialect.name == "sqlite":
            read = self.impl_instance.result_processor(dialect, coltype)  # from text
            return lambda value: _aware(read(value) if read else value)
        return _in_utc


def _aware(value: datetime | None) -> datetime | None:
    return value and value.replace(tzinfo=UTC)


def _in_utc(value: datetime | None) -> datetime | None:
    return value if value is None or value.tzinfo is UTC else value.astimezone(UTC)


def utc(value: datetime) -> datetime:
    """`value` in UTC.

    Raises:
        ValueError: it has no time zone.
    """
    if value.tzinfo is None:
        raise ValueError(f"a time to store must have a time zone: {value!r}")
    return value.astimezone(UTC)


def enum_by_value(kind: type[StrEnum], name: str) -> Enum:
    """`kind` stored as its values, in a string column with a CHECK constraint called `name`.

    Not a native PostgreSQL enum: those cannot lose a value again, and SQLite has none.
    """
    return Enum(
        kind,
        name=name,
        native_enum=False,
        create_constraint=True,
        values_callable=lambda members: [member.value for member in members],
        length=16,
    )

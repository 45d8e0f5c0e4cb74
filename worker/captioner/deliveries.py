"""Deliveries: events on their way to whom plugins named as their targets."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from captioner.events import DeliveryState, Event

#: A plugin and what it calls its target; None stands for the question whom to deliver to.
Target = tuple[str, str | None]
#: A place in the order of what is due: just after the delivery with this time and id.
Position = tuple[datetime, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event for one target of one plugin, as it stands in SQL."""

    id: int
    event: Event
    plugin: str
    #: The plugin's own name for it; None: the plugin could not say and is to be asked again.
    target: str | None
    state: DeliveryState
    #: Attempts that ended, since it was last asked for.
    attempts: int
    #: Not tried before this.
    due_at: datetime
    #: Of the last attempt: such as the HTTP status, and what was wrong.
    last_status: int | None
    last_error: str | None
    created_at: datetime
    #: When it was delivered or given up.
    finished_at: datetime | None
    #: Its worker was lost with it: made in a process of its own, which it may take down.
    apart: bool = False

    @property
    def key(self) -> Target:
        """Who delivers it, and to whom."""
        return self.plugin, self.target

    def as_mapping(self) -> dict[str, Any]:
        """The delivery as programs see it: JSON values only."""
        return {
            "id": self.id,
            "event": {
                "id": self.event.id,
                "type": self.event.type,
                "job_id": str(self.event.job_id),
                "occurred_at": self.event.occurred_at.isoformat(),
            },
            "plugin": self.plugin,
            "target": self.target,
            "state": self.state.value,
            "attempts": self.attempts,
            "due_at": self.due_at.isoformat() if self.state is DeliveryState.PENDING else None,
            "last_status": self.last_status,
            "last_error": self.last_error,
            "created_at": self.created_at.isoformat(),
            "finished_at": self.finished_at.isoformat() if self.finished_at else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt of a delivery, in its log."""

    #: From 1; goes on when the delivery is asked for again.
    number: int
    started_at: datetime
    duration_seconds: float
    #: Such as the HTTP status, when there was an answer.
    status: int | None
    #: What was wrong; None: it was delivered.
    error: str | None
    #: The beginning of the answer.
    excerpt: str

    def as_mapping(self) -> dict[str, Any]:
        """The attempt as programs see it: JSON values only."""
        return {
            "number": self.number,
            "started_at": self.started_at.isoformat(),
            "duration_seconds": self.duration_seconds,
            "status": self.status,
            "error": self.error,
            "excerpt": self.excerpt,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDelivery:
    """What expanding an event asks the store to write for one target."""

    plugin: str
    target: str | None
    due_at: datetime
    #: Why the plugin is to be asked again.
    error: str | None = None
    #: To be asked in a process of its own: a worker may have been lost with the question.
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Expansion:
    """All deliveries of one event; none when nobody wants it."""

    event_id: int
    deliveries: tuple[NewDelivery, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnd:
    """How an attempt ended: what a dispatcher asks the store to record."""

    #: As it was claimed.
    delivery: Delivery
    started_at: datetime
    duration_seconds: float
    #: `pending`: to be tried again.
    state: DeliveryState
    due_at: datetime
    status: int | None = None
    error: str | None = None
    excerpt: str = ""
    #: What a plugin that was asked again named: they replace the delivery.
    targets: tuple[NewDelivery, ...] | None = None
    #: The process that made it died: the next one is made in one of its own, too.
    apart: bool = False

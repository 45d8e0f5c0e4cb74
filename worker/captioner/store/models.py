"""The tables. A change here needs a migration; `alembic check` and the tests compare the two."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    Uuid,
    and_,
    bindparam,
    false,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from captioner.domain import MAX_CLIENT_KEY_CHARACTERS, EndpointState, JobState, Lane
from captioner.events import MAX_TARGET_CHARACTERS, DeliveryState
from captioner.store.columns import Json, UtcDateTime, enum_by_value

#: Longest id of a worker or of a lease's holder.
MAX_OWNER_CHARACTERS = 255
MAX_PLUGIN_CHARACTERS = 255


class Base(DeclarativeBase):
    """Every constraint has a name that follows from its columns, so that migrations can name it."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        bool: Boolean(),
        datetime: UtcDateTime(),
        float: Double(),
        int: Integer(),
        str: Text(),
        UUID: Uuid(),
        dict[str, Any]: Json,
        list[str]: Json,
        list[dict[str, Any]]: Json,
    }


class JobRow(Base):
    """One caption job: what was asked, where it stands, and how it ended."""

    __tablename__ = "jobs"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    state: Mapped[JobState] = mapped_column(enum_by_value(JobState, "state"))
    lane: Mapped[Lane] = mapped_column(enum_by_value(Lane, "lane"))
    #: In full, query and credentials too: the worker has to open it. Never shown.
    source: Mapped[str]
    #: As it may be shown and logged.
    source_display: Mapped[str]
    options: Mapped[dict[str, Any]]
    #: The client's; `metadata` is a reserved word of declarative classes.
    client_metadata: Mapped[dict[str, Any]] = mapped_column("metadata")
    client_key: Mapped[str | None] = mapped_column(String(MAX_CLIENT_KEY_CHARACTERS), unique=True)
    #: In full, and it may hold a secret: never shown but redacted.
    webhook_url: Mapped[str | None]
    #: SHA-256 of source and options: tells a repeated request from another under the same key.
    fingerprint: Mapped[str] = mapped_column(String(64))
    #: Not claimed any more from then on.
    deadline_at: Mapped[datetime | None]
    #: Times claimed; the fencing token of a record.
    attempt: Mapped[int]
    #: Attempts that failed and were followed by another.
    retries: Mapped[int] = mapped_column(server_default="0")
    #: Times its worker fell silent with it. Not `attempt`: what is handed back counts there, too.
    losses: Mapped[int] = mapped_column(server_default="0")
    #: Times an engine or decoder died with this job alone in it.
    crashes: Mapped[int]
    #: `workers.id` of who runs or ran it; no foreign key, the name outlives the row.
    owner: Mapped[str | None] = mapped_column(String(MAX_OWNER_CHARACTERS))
    #: A retry is not claimed before this; NULL again as soon as that time has come.
    not_before: Mapped[datetime | None]
    created_at: Mapped[datetime]
    dispatched_at: Mapped[datetime | None]
    #: Shared by the jobs of one message: tells how many messages the queued jobs are in.
    dispatch_id: Mapped[UUID | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    #: An `ErrorCode`; without a CHECK, because codes join without a migration.
    error_code: Mapped[str | None] = mapped_column(String(40))
    error_message: Mapped[str | None]
    error_retryable: Mapped[bool | None]
    #: The `ModelInfo` of the result.
    model: Mapped[dict[str, Any] | None] = mapped_column(Json)
    #: Seconds by stage.
    timings: Mapped[dict[str, Any]]
    #: Of a video; NULL: a still picture, or nothing is known yet.
    frames_done: Mapped[int | None]
    frames_total: Mapped[int | None]


class CaptionRow(Base):
    """One caption of a job that succeeded."""

    __tablename__ = "captions"

    job_id: Mapped[UUID] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    rank: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str]
    continuation: Mapped[str]
    alt_text: Mapped[str | None]
    score: Mapped[float]
    beam_score: Mapped[float | None]
    start_seconds: Mapped[float | None]
    end_seconds: Mapped[float | None]
    frame_seconds: Mapped[float | None]
    origin: Mapped[str] = mapped_column(String(255))


class FrameRow(Base):
    """What the model said of one frame of a job that has not ended; gone when it has."""

    __tablename__ = "job_frames"

    job_id: Mapped[UUID] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    #: From 0, in the order in which the frames came, of all attempts together.
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    time_seconds: Mapped[float]
    media_seconds: Mapped[float | None]
    #: Best first, each as the fields of a `Caption`.
    captions: Mapped[list[dict[str, Any]]]
    #: Which one said it: another model's attempt begins anew.
    model_id: Mapped[str]
    model_revision: Mapped[str]


class EventRow(Base):
    """The outbox: one row per terminal transition, written in the transition's transaction."""

    __tablename__ = "events"

    # SQLite numbers rows only in a column of exactly this type.
    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True
    )
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    type: Mapped[str] = mapped_column(String(40))
    state: Mapped[JobState] = mapped_column(enum_by_value(JobState, "state"))
    attempt: Mapped[int]
    occurred_at: Mapped[datetime]
    data: Mapped[dict[str, Any]]
    #: When its deliveries were written. Not a cursor on `id`: ids are not committed in order.
    expanded_at: Mapped[datetime | None]


class DeliveryRow(Base):
    """An event on its way to one target of one plugin."""

    __tablename__ = "deliveries"
    __table_args__ = (UniqueConstraint("event_id", "plugin", "target"),)

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True
    )
    event_id: Mapped[int] = mapped_column(ForeignKey("events.id", ondelete="CASCADE"))
    plugin: Mapped[str] = mapped_column(String(MAX_PLUGIN_CHARACTERS))
    #: The plugin's own name for it; NULL: it could not say, and is to be asked for its targets.
    target: Mapped[str | None] = mapped_column(String(MAX_TARGET_CHARACTERS))
    state: Mapped[DeliveryState] = mapped_column(enum_by_value(DeliveryState, "state"))
    #: Attempts that ended, since it was last asked for.
    attempts: Mapped[int]
    #: Not tried before this.
    due_at: Mapped[datetime]
    #: Who tries it, and until when nobody else may.
    lease_owner: Mapped[str | None] = mapped_column(String(MAX_OWNER_CHARACTERS))
    lease_expires_at: Mapped[datetime | None]
    #: The last process that tried it was lost with it: to be tried in one of its own.
    apart: Mapped[bool] = mapped_column(server_default=false())
    last_status: Mapped[int | None]
    last_error: Mapped[str | None]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class DeliveryAttemptRow(Base):
    """One attempt of a delivery, as it ended."""

    __tablename__ = "delivery_attempts"

    delivery_id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"),
        ForeignKey("deliveries.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    started_at: Mapped[datetime]
    duration_seconds: Mapped[float]
    #: Such as the HTTP status, when there was an answer.
    status: Mapped[int | None]
    error: Mapped[str | None]
    #: The beginning of the answer.
    excerpt: Mapped[str | None]


class EndpointRow(Base):
    """A registered receiver of webhooks."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    #: In full, and it may hold a secret: never shown.
    url: Mapped[str]
    #: As it may be shown and logged.
    url_display: Mapped[str]
    description: Mapped[str]
    #: Which events it wants; empty: all.
    event_types: Mapped[list[str]]
    #: Encrypted.
    secret: Mapped[str]
    #: Encrypted; signs too until then, so that a receiver can change over.
    previous_secret: Mapped[str | None]
    previous_secret_expires_at: Mapped[datetime | None]
    state: Mapped[EndpointState] = mapped_column(enum_by_value(EndpointState, "state"))
    disabled_reason: Mapped[str | None]
    #: The first of the failures since something was delivered to it last.
    failing_since: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class PluginErrorRow(Base):
    """How often one hook of one plugin failed, and how it did last."""

    __tablename__ = "plugin_errors"

    plugin: Mapped[str] = mapped_column(String(MAX_PLUGIN_CHARACTERS), primary_key=True)
    hook: Mapped[str] = mapped_column(String(40), primary_key=True)
    errors: Mapped[int] = mapped_column(BigInteger())
    last_error: Mapped[str]
    last_at: Mapped[datetime]


class WorkerRow(Base):
    """One worker process; its heartbeat is the lease of every job it owns."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(MAX_OWNER_CHARACTERS), primary_key=True)
    name: Mapped[str] = mapped_column(String(MAX_OWNER_CHARACTERS))
    pid: Mapped[int]
    queues: Mapped[list[str]]
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime] = mapped_column(index=True)


class LeaseRow(Base):
    """Who does a task that only one process may do, and until when."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(String(MAX_OWNER_CHARACTERS))
    expires_at: Mapped[datetime]


def in_state(state: JobState) -> ColumnElement[bool]:
    """`jobs.state = '…'` with the value in the text: a parameter would hide the partial index."""
    value = bindparam(None, state, type_=JobRow.state.type, unique=True, literal_execute=True)
    return JobRow.state == value


def delivery_in_state(state: DeliveryState) -> ColumnElement[bool]:
    """`deliveries.state = '…'`, as `in_state` for jobs."""
    value = bindparam(None, state, type_=DeliveryRow.state.type, unique=True, literal_execute=True)
    return DeliveryRow.state == value


def _partial(name: str, *columns: Any, where: ColumnElement[bool]) -> None:
    """An index of the few rows that meet a condition, however many others there are."""
    Index(name, *columns, postgresql_where=where, sqlite_where=where)


# One state newest first, and the counts.
Index("ix_jobs_state_created_at_id", JobRow.state, JobRow.created_at, JobRow.id)
# All jobs newest first, by key.
Index("ix_jobs_created_at_id", JobRow.created_at, JobRow.id)
# What an owner has in hand.
_partial("ix_jobs_owner_processing", JobRow.owner, where=in_state(JobState.PROCESSING))
# Queued jobs without a message, oldest first. In this one and others `state` leads although it is
# the same in all rows: planners would take the index of all jobs for the better one.
_partial(
    "ix_jobs_undispatched",
    JobRow.state,
    JobRow.created_at,
    JobRow.id,
    where=and_(
        in_state(JobState.QUEUED), JobRow.dispatched_at.is_(None), JobRow.not_before.is_(None)
    ),
)
# Queued jobs with one, message by message.
_partial(
    "ix_jobs_dispatched",
    JobRow.lane,
    JobRow.dispatched_at,
    JobRow.dispatch_id,
    where=and_(in_state(JobState.QUEUED), JobRow.dispatched_at.is_not(None)),
)
# Retries that wait for their time.
_partial(
    "ix_jobs_not_before",
    JobRow.state,
    JobRow.not_before,
    where=and_(in_state(JobState.QUEUED), JobRow.not_before.is_not(None)),
)
# Queued jobs that can expire.
_partial(
    "ix_jobs_deadline_at",
    JobRow.state,
    JobRow.deadline_at,
    where=and_(in_state(JobState.QUEUED), JobRow.deadline_at.is_not(None)),
)
# What has ended, oldest first.
_partial("ix_jobs_finished_at", JobRow.finished_at, where=JobRow.finished_at.is_not(None))
_partial("ix_events_unexpanded", EventRow.id, where=EventRow.expanded_at.is_(None))
# Deliveries to be made, the longest due first; with all that tells whether a target can take one
# now, so that the backlog of a dead receiver is passed over in the index alone.
_partial(
    "ix_deliveries_pending",
    DeliveryRow.state,
    DeliveryRow.due_at,
    DeliveryRow.id,
    DeliveryRow.plugin,
    DeliveryRow.target,
    where=delivery_in_state(DeliveryState.PENDING),
)
# Targets that a worker was lost with.
_partial(
    "ix_deliveries_apart", DeliveryRow.plugin, DeliveryRow.target, where=and_(DeliveryRow.apart)
)
# One state newest first.
Index("ix_deliveries_state_id", DeliveryRow.state, DeliveryRow.id)

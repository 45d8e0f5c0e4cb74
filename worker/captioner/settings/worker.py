"""How a worker works, what it does again, and what it says of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import NoDecode

from captioner.queues import ALL_QUEUES
from captioner.settings.section import Section, comma_separated


class WorkerSettings(Section):
    """How one worker process runs."""

    concurrency: int | None = Field(
        None, ge=1, le=4096, description="Jobs in hand at once; default: three batches' worth."
    )
    heartbeat_seconds: float = Field(
        10.0, gt=0, le=3600, description="How often a worker says in SQL that it lives."
    )
    lease_seconds: float = Field(
        45.0, gt=0, le=86_400, description="A worker silent for this long has lost its jobs."
    )
    name: str = Field("captioner@%h", min_length=1, description="Name in Flower; %h is the host.")
    queues: str | None = Field(
        None,
        min_length=1,
        description="Queues to work for, in order; default: submissions, captions, captions.bulk "
        "and videos, and events too where no broker is named.",
    )

    @field_validator("queues")
    @classmethod
    def _check_queues(cls, value: str | None) -> str | None:
        if value is None:
            return None
        names = [name.strip() for name in value.split(",")]
        if not set(names) <= set(ALL_QUEUES):
            raise ValueError(f"each must be one of {', '.join(ALL_QUEUES)}")
        return ",".join(names)  # Celery would look for a queue whose name begins with a blank


class RetrySettings(Section):
    """What becomes of a job whose attempts fail or whose workers die."""

    max_losses: int = Field(
        20, ge=1, le=10_000, description="A job whose workers died so often with it has failed."
    )
    max_retries: int = Field(
        5, ge=0, le=1000, description="A job is tried again so often after passing failures."
    )
    max_crashes: int = Field(
        3, ge=1, le=100, description="A job that alone brings down a process so often has failed."
    )
    first_delay_seconds: float = Field(
        5.0, ge=0, le=86_400, description="Before the first retry; doubled for each after it."
    )
    max_delay_seconds: float = Field(
        600.0, ge=0, le=604_800, description="Longest pause before a retry."
    )


class PluginSettings(Section):
    """Which installed plugins run."""

    enabled: Annotated[tuple[str, ...] | None, BeforeValidator(comma_separated), NoDecode] = Field(
        None, description="Only these, separated by commas; default: all that are installed."
    )
    disabled: Annotated[tuple[str, ...], BeforeValidator(comma_separated), NoDecode] = Field(
        (), description="Not these, separated by commas."
    )


class LogSettings(Section):
    """What is logged, and how."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level.")
    format: Literal["text", "json"] = Field("text", description="json: one object a line.")

"""How events are delivered, by webhook and otherwise."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from captioner.settings.section import Section


class EventSettings(Section):
    """How events are delivered to what plugins name as their targets."""

    poll_seconds: float = Field(
        0.5, gt=0, le=60, description="How often a worker with nothing to deliver looks for more."
    )
    threads: int = Field(
        32,
        ge=1,
        le=1024,
        description="Deliveries of a worker at once; those that take longer than a second count "
        "apart, up to four times as many.",
    )
    per_target_in_flight: int = Field(
        4, ge=1, le=1024, description="Deliveries of a worker to one target at once."
    )
    lease_seconds: float = Field(
        60.0, gt=0, le=3600, description="A killed worker's deliveries are made after this long."
    )
    attempt_timeout_seconds: float = Field(
        30.0, gt=0, le=3600, description="An attempt that takes longer has failed."
    )
    delays_seconds: Annotated[tuple[float, ...], NoDecode] = Field(
        (5, 30, 120, 600, 3_600, 10_800, 28_800, 86_400),
        description="Pauses before each new attempt, separated by commas; after the last: dead.",
    )

    @field_validator("delays_seconds", mode="before")
    @classmethod
    def _split_delays(cls, value: object) -> object:
        # An empty part is a mistake: without it there would be an attempt less.
        return value.split(",") if isinstance(value, str) else value

    @field_validator("delays_seconds")
    @classmethod
    def _check_delays(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= delay <= 604_800 for delay in value):
            raise ValueError("each pause must be of 0 to 604800 seconds")
        return value


class WebhookSettings(Section):
    """What is posted to receivers of events."""

    encryption_key: SecretStr = Field(
        SecretStr(""),
        description="Keys that endpoints' secrets are encrypted with, separated by commas, the "
        "first for new ones; empty: a file in the data folder.",
    )
    timeout_seconds: float = Field(
        15.0,
        gt=0,
        le=300,
        description="Whole time a delivery to a receiver may take; nine tenths of "
        "EVENTS__ATTEMPT_TIMEOUT_SECONDS at most.",
    )
    disable_after_days: float = Field(
        5.0,
        ge=0,
        le=365,
        description="An endpoint that only fails for so long is disabled; 0: never.",
    )

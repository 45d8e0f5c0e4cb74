"""Where jobs are, and what carries their ids to workers."""

from __future__ import annotations

from pydantic import Field, SecretStr

from captioner.settings.section import Section


class DatabaseSettings(Section):
    """Where jobs are recorded."""

    url: SecretStr = Field(
        SecretStr(""),
        description="postgresql+psycopg://… or sqlite:///…; empty: SQLite in the data folder.",
    )
    pool_size: int = Field(
        8,
        ge=1,
        le=256,
        description="Most connections to PostgreSQL; a worker has two more to say that it lives.",
    )
    busy_timeout_seconds: float = Field(
        10.0,
        gt=0.001,
        le=600,
        description="How long SQLite waits for another writer, and PostgreSQL for a lock.",
    )


class BrokerSettings(Section):
    """What carries job ids to workers."""

    url: SecretStr = Field(
        SecretStr(""),
        description="redis://…, rediss://…, or sentinel://… (several with `;` between them); "
        "empty: a SQLite file in the data folder.",
    )
    key_prefix: str = Field(
        "captioner:", description="Prefix of every key in Redis; one per installation sharing it."
    )
    visibility_timeout_seconds: int = Field(
        600,
        ge=10,
        description="Redis redelivers a request that no worker has inserted after this long.",
    )
    socket_timeout_seconds: float = Field(
        10.0, gt=0, description="A frozen Redis is given up after this long."
    )
    sentinel_master: str = Field(
        "mymaster", min_length=1, description="What sentinels call the Redis to use."
    )
    max_message_bytes: int = Field(
        2**20, ge=4096, description="Larger messages in Redis are dropped, not decoded."
    )


class RetentionSettings(Section):
    """How long what has ended is kept."""

    finished_days: int = Field(
        0,
        ge=0,
        le=36_500,
        description="Ended jobs, and with them their client keys, are deleted after this many "
        "days; 0: never.",
    )

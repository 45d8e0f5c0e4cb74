"""Run by Alembic for every command: connects, and runs what the command asks for.

The connection comes from `captioner.store.schema`; for plain `alembic …` in a checkout it is that
of the configured database (`CAPTIONER_DATABASE__URL`, or the embedded one).
"""

from __future__ import annotations

from typing import Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import JSON, Connection

from captioner.settings import load_settings
from captioner.store.columns import UtcDateTime
from captioner.store.models import Base
from captioner.store.schema import migrating
from captioner.store.session import engine_from_settings


def render_item(kind: str, item: object, rendering: AutogenContext) -> str | Literal[False]:
    """Types of the models as plain ones: a migration must not change when the models do."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, JSON):
        rendering.imports.add("from sqlalchemy.dialects import postgresql")
        return 'sa.JSON().with_variant(postgresql.JSONB(), "postgresql")'
    return False


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_item=render_item,
        # SQLite alters a table by copying it.
        render_as_batch=True,
        # On PostgreSQL each migration is committed by itself, so that one may build an index
        # concurrently; on SQLite all are one transaction, begun by `migrating`.
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("--sql is not supported: migrations look at the database they change")

given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    engine = engine_from_settings(load_settings())
    try:
        with migrating(engine) as connection:
            run(connection)
    finally:
        engine.dispose()

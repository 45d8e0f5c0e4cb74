"""The record of every job in SQL: SQLite or PostgreSQL. Nothing else imports SQLAlchemy."""

from __future__ import annotations

from captioner.store.combined import CombinedStore
from captioner.store.endpoints import WebhookEndpoint
from captioner.store.opening import SchemaStatus, open_store, schema_status, upgrade_schema
from captioner.store.queries import Cursor
from captioner.store.repository import Store
from captioner.store.retention import Ended
from captioner.store.schema import current, head, require_current, upgrade
from captioner.store.session import create_store_engine, engine_from_settings
from captioner.store.submissions import Submission
from captioner.store.upkeep import Lost

__all__ = [
    "CombinedStore",
    "Cursor",
    "Ended",
    "Lost",
    "SchemaStatus",
    "Store",
    "Submission",
    "WebhookEndpoint",
    "create_store_engine",
    "current",
    "engine_from_settings",
    "head",
    "open_store",
    "require_current",
    "schema_status",
    "upgrade",
    "upgrade_schema",
]

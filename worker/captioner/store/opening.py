"""Opening the database that the settings name, with its schema seen to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Engine

from captioner.settings import Settings
from captioner.store import schema
from captioner.store.repository import Store
from captioner.store.session import display_url, engine_from_settings


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """Where a database's schema stands."""

    #: The database, as it may be shown.
    database: str
    #: Its revision; None when it has no tables of ours.
    current: str | None
    #: The revision this version needs.
    needed: str


def open_store(settings: Settings, *, pool_size: int | None = None) -> Store:
    """Open the configured database and see that its schema is this version's.

    Args:
        settings: where it is.
        pool_size: most connections to PostgreSQL, if not as the settings say.

    The embedded database is ours alone, so it is created and upgraded here. A database that was
    named is upgraded when an operator says so: `captioner db upgrade`.

    Raises:
        SettingsError: the URL cannot be used, or its driver is not installed.
        StoreUnavailableError: the database cannot be reached or opened.
        SchemaError: the schema is older or newer; the text says what to run.
    """
    engine = engine_from_settings(settings, pool_size=pool_size)
    try:
        if settings.embedded_database and schema.current(engine) != schema.head():
            schema.upgrade(engine)
        schema.require_current(engine)
    except BaseException:
        engine.dispose()
        raise
    return Store(engine)


def upgrade_schema(settings: Settings) -> tuple[SchemaStatus, SchemaStatus]:
    """Upgrade the configured database; its status before and after.

    Raises:
        StoreUnavailableError: the database cannot be reached or opened.
        SchemaError: it was upgraded by a newer captioner.
    """
    with _disposed(engine_from_settings(settings)) as engine:
        before = _status(engine)
        schema.upgrade(engine)
        return before, _status(engine)


def schema_status(settings: Settings) -> SchemaStatus:
    """Where the configured database's schema stands.

    Raises:
        StoreUnavailableError: the database cannot be reached or opened.
    """
    with _disposed(engine_from_settings(settings)) as engine:
        return _status(engine)


def _status(engine: Engine) -> SchemaStatus:
    return SchemaStatus(display_url(engine.url), schema.current(engine), schema.head())


@contextlib.contextmanager
def _disposed(engine: Engine) -> Iterator[Engine]:
    try:
        yield engine
    finally:
        engine.dispose()

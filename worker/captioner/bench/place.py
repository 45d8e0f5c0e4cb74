"""A database and a corner of Redis that are the measurement's own, and gone afterwards."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Iterator

import redis
from pydantic import SecretStr
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from captioner.errors import BrokerUnavailableError, SettingsError, StoreUnavailableError, describe
from captioner.settings import Settings
from captioner.store import create_store_engine, upgrade


def require_servers(settings: Settings) -> None:
    """Refuse anything but Redis and PostgreSQL.

    Raises:
        SettingsError: another is named, or none.
    """
    if not settings.broker_url.startswith(("redis://", "rediss://")):
        raise SettingsError(
            "this is measured on a Redis: name one by --broker redis://… or CAPTIONER_BROKER__URL"
        )
    if not settings.database_url.startswith("postgresql"):
        raise SettingsError(
            "this is measured on a PostgreSQL, where a database is created and dropped: "
            "name one by --database postgresql://… or CAPTIONER_DATABASE__URL"
        )


@contextlib.contextmanager
def own_place(settings: Settings) -> Iterator[Settings]:
    """Settings that name a fresh database, with the tables, and a key prefix that nobody has.

    Raises:
        StoreUnavailableError: the database server cannot be reached, or its user may not create
            databases.
        BrokerUnavailableError: Redis cannot be reached.
    """
    name = f"captioner_bench_{secrets.token_hex(4)}"
    with _own_keys(settings.broker_url, f"{name}:"), _own_database(settings, name) as url:
        upgrade(url)
        yield settings.model_copy(
            update={
                "database": settings.database.model_copy(update={"url": SecretStr(url)}),
                "broker": settings.broker.model_copy(update={"key_prefix": f"{name}:"}),
            }
        )


@contextlib.contextmanager
def own_database(settings: Settings) -> Iterator[str]:
    """The URL of a fresh database with the tables: in the PostgreSQL that is named, else a file.

    Raises:
        StoreUnavailableError: the server cannot be reached, or its user may not create databases.
    """
    if settings.database_url.startswith("postgresql"):
        with _own_database(settings, f"captioner_bench_{secrets.token_hex(4)}") as url:
            upgrade(url)
            yield url
        return
    with tempfile.TemporaryDirectory(prefix="captioner-bench-") as folder:
        url = f"sqlite:///{folder}/captioner.sqlite3"
        upgrade(url)
        yield url


@contextlib.contextmanager
def _own_database(settings: Settings, name: str) -> Iterator[str]:
    url = make_url(settings.database_url)
    server = create_store_engine(url, pool_size=1)
    try:
        _execute(server, f'CREATE DATABASE "{name}" TEMPLATE template0')
        try:
            yield url.set(database=name).render_as_string(hide_password=False)
        finally:
            _execute(server, f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        server.dispose()


def _execute(server: Engine, statement: str) -> None:
    # Databases are not created, or dropped, in a transaction.
    engine = server.execution_options(isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(statement))
    except SQLAlchemyError as error:
        problem = describe(getattr(error, "orig", None) or error)
        raise StoreUnavailableError(
            f"{statement.partition(' TEMPLATE')[0]} failed; the measurement needs a database of "
            f"its own: {problem}"
        ) from error


@contextlib.contextmanager
def _own_keys(url: str, prefix: str) -> Iterator[None]:
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        try:
            client.ping()
        except redis.RedisError as error:
            raise BrokerUnavailableError.because_of(error) from error
        try:
            yield
        finally:
            for key in client.scan_iter(f"{prefix}*", count=1000):
                client.delete(key)

"""How messages travel: broker URL and options for each transport.

The embedded broker is kombu's SQLAlchemy transport on a SQLite file of its own, polled often
enough that a person does not notice.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from queue import Empty
from typing import Any

from celery.worker import state as worker_state
from kombu.connection import Connection
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import sqlalchemy as sqlalchemy_transport

from captioner.errors import BrokerUnavailableError, SettingsError
from captioner.lost_connections import PutsAway
from captioner.open_queues import QueueOrder, open_queues
from captioner.private_files import make_private_file, make_private_folder
from captioner.settings import Settings

EMBEDDED_PREFIX = "sqla+sqlite:///"
#: How often who waits for a message looks whether the worker shall end.
LOOK_SECONDS = 0.2


class EmbeddedChannel(sqlalchemy_transport.Channel):
    """A channel that takes messages only from queues that are open.

    It looks into a queue that was empty only when something has been written since: a look is a
    transaction that nobody may write beside, and twenty a second took a fifth of a core.
    """

    _watch: sqlite3.Connection | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """As kombu's own."""
        super().__init__(*arguments, **options)
        #: How far the file was when a queue was found empty.
        self._empty_at: dict[str, int] = {}

    def _get(self, queue: str, timeout: Any = None) -> Any:  # noqa: ARG002  # kombu's
        if queue not in open_queues.among(self._active_queues):
            raise Empty
        version = self._version()
        if self._empty_at.get(queue) == version:
            raise Empty
        try:
            return super()._get(queue)
        except Empty:
            self._empty_at[queue] = version
            raise

    def _version(self) -> int:
        """Another number whenever somebody may have written to the broker's file since."""
        url = self.session.bind.url
        if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
            return time.monotonic_ns()  # no file to watch
        try:
            if self._watch is None:
                self._watch = sqlite3.connect(url.database, check_same_thread=False)
            (version,) = self._watch.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:
            self._stop_watching()
            return time.monotonic_ns()  # let kombu look, and say what is wrong
        return int(version)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def close(self) -> None:
        """As kombu's own."""
        self._stop_watching()
        super().close()


class EmbeddedTransport(PutsAway, sqlalchemy_transport.Transport):
    """The SQLAlchemy transport, asking for new messages 20 times a second instead of once.

    The interval cannot be given as a transport option: this transport hands those to SQLAlchemy.
    """

    polling_interval = 0.05
    Channel = EmbeddedChannel

    def drain_events(self, connection: Any, timeout: Any = None, **_: Any) -> None:
        """Deliver a message; of the time that it may wait none is left once the worker shall end.

        Celery's loop for such transports waits twice two seconds after it was told to.
        """
        give_up = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                super().drain_events(connection, timeout=LOOK_SECONDS)
            except TimeoutError:
                late = give_up is not None and time.monotonic() >= give_up
                if late or worker_state.should_stop is not None:
                    raise
            else:
                return


TRANSPORT_ALIASES["sqla"] = f"{__name__}:{EmbeddedTransport.__name__}"
# By name: producers on another transport need no Redis client.
TRANSPORT_ALIASES["redis"] = TRANSPORT_ALIASES["rediss"] = "captioner.message_guard:Transport"
TRANSPORT_ALIASES["sentinel"] = "captioner.message_guard:SentinelTransport"


def broker_options(settings: Settings) -> dict[str, Any]:
    """Transport options of the broker in use; each transport refuses those of the others.

    Raises:
        SettingsError: the URL cannot be used with them.
    """
    broker = settings.broker
    if not settings.broker_url.startswith(("redis", "sentinel")):
        return {}
    options = {
        "visibility_timeout": broker.visibility_timeout_seconds,
        # Look for messages of dead workers every 10 s instead of every 100.
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        # Without these a publish to a frozen Redis hangs for ever.
        "socket_timeout": broker.socket_timeout_seconds,
        "socket_connect_timeout": min(5.0, broker.socket_timeout_seconds),
        "socket_keepalive": True,
        "health_check_interval": 25,
        "global_keyprefix": broker.key_prefix,
        # Interactive jobs before bulk ones, in the order the queues are declared.
        "queue_order_strategy": f"{QueueOrder.__module__}:{QueueOrder.__name__}",
        "max_message_bytes": broker.max_message_bytes,
    }
    if settings.broker_url.startswith("sentinel"):
        options["master_name"] = broker.sentinel_master
    _check_url(settings.broker_url, options)
    return options


def _check_url(url: str, options: dict[str, Any]) -> None:
    """Refuse what kombu or the Redis client would refuse, without connecting.

    They would only when the first message is published, after its job is committed.
    """
    for one in url.split(";"):
        try:
            connection: Any = Connection(one, transport_options=options)
            _make_connection(connection.create_transport(), options)
        except Exception as error:  # noqa: BLE001  # both raise what comes along
            # Without its text: what seems to be a database may be part of a password.
            raise SettingsError(f"CAPTIONER_BROKER__URL {_problem(one, error)}") from None


def _make_connection(transport: Any, options: dict[str, Any]) -> None:
    """What a channel does before it connects."""
    kind = transport.Channel
    channel = kind.__new__(kind)  # to initialise it is to connect
    channel.connection = transport
    for name, value in options.items():
        setattr(channel, name, value)
    channel._get_pool().make_connection()  # noqa: SLF001  # kombu has no other way


def _problem(url: str, error: Exception) -> str:
    if isinstance(error, KeyError):
        return "has an ssl_cert_reqs that is none of required, optional and none"
    if isinstance(error, ValueError):
        return "has a database that is no number; it must end as in redis://host:6379/0"
    if "?" in url:
        return "has an option behind its ? that the Redis client does not know"
    return f"cannot be used: {type(error).__name__}"


def prepare_embedded_broker(url: str) -> None:
    """Create the embedded broker's file in WAL mode, so that readers never block a publisher.

    Raises:
        BrokerUnavailableError: the file cannot be made; the text says where.
    """
    if not url.startswith(EMBEDDED_PREFIX):
        return
    path = Path(url.removeprefix(EMBEDDED_PREFIX))
    try:
        make_private_folder(path.parent)
        make_private_file(path)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    except (OSError, sqlite3.Error) as error:
        raise BrokerUnavailableError(
            f"the embedded broker {path} cannot be opened: {error}; see CAPTIONER_DATA_DIR"
        ) from error

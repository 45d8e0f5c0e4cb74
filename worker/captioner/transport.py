"""How messages travel: broker URL and options for each transport.

The embedded broker is kombu's SQLAlchemy transport on a SQLite file of its own, polled often
enough that a person does not notice.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import sqlalchemy as sqlalchemy_transport

from captioner.errors import BrokerUnavailableError
from captioner.private_files import make_private_file, make_private_folder
from captioner.settings import Settings
from captioner.video_quota import OpenQueues, quota

EMBEDDED_PREFIX = "sqla+sqlite:///"


class EmbeddedChannel(sqlalchemy_transport.Channel):
    """A channel that takes messages only from queues that are open."""

    def _get(self, queue: str, timeout: Any = None) -> Any:  # noqa: ARG002  # kombu's
        if queue not in quota.open_queues(self._active_queues):
            raise Empty
        return super()._get(queue)


class EmbeddedTransport(sqlalchemy_transport.Transport):
    """The SQLAlchemy transport, asking for new messages 20 times a second instead of once.

    The interval cannot be given as a transport option: this transport hands those to SQLAlchemy.
    """

    polling_interval = 0.05
    Channel = EmbeddedChannel


TRANSPORT_ALIASES["sqla"] = f"{__name__}:{EmbeddedTransport.__name__}"
# By name: producers on another transport need no Redis client.
TRANSPORT_ALIASES["redis"] = TRANSPORT_ALIASES["rediss"] = "captioner.message_guard:Transport"
TRANSPORT_ALIASES["sentinel"] = "captioner.message_guard:SentinelTransport"


def broker_options(settings: Settings) -> dict[str, Any]:
    """Transport options of the broker in use; each transport refuses those of the others."""
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
        "queue_order_strategy": f"{OpenQueues.__module__}:{OpenQueues.__name__}",
        "max_message_bytes": broker.max_message_bytes,
    }
    if settings.broker_url.startswith("sentinel"):
        options["master_name"] = broker.sentinel_master
    return options


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

"""Which transport carries the messages, and the options it gets: each refuses the others'."""

from __future__ import annotations

from typing import Any

from kombu.connection import Connection
from kombu.transport import TRANSPORT_ALIASES

from captioner.broker.open_queues import QueueOrder
from captioner.errors import SettingsError
from captioner.settings import Settings

# By name: producers on another transport need no Redis client.
TRANSPORT_ALIASES["redis"] = "captioner.broker.message_guard:Transport"
TRANSPORT_ALIASES["rediss"] = TRANSPORT_ALIASES["redis"]
TRANSPORT_ALIASES["sentinel"] = "captioner.broker.message_guard:SentinelTransport"
TRANSPORT_ALIASES["sqla"] = "captioner.broker.embedded:EmbeddedTransport"


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

"""kombu's Redis transports, which drop a malformed message instead of dying of it.

An element is checked when it leaves Redis, before kombu decodes it; one that fails is logged in one
line and taken for an empty list. The same goes for remote-control commands, and for messages that
are put back because nobody acknowledged them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from kombu.transport import redis
from redis.exceptions import ConnectionError  # noqa: A004  # which kombu knows as one

from captioner.broker.envelope import MalformedError
from captioner.broker.lost_connections import PutsAway
from captioner.broker.message_checks import (
    check_broadcast,
    check_event,
    check_reply,
    check_task,
    check_unacknowledged,
)
from captioner.broker.open_queues import open_queues

#: Used when the transport option `max_message_bytes` is not given.
DEFAULT_MAX_BYTES = 2**20
#: How soon a queue that was closed is asked again; kombu waits for the others for a second.
CLOSED_SECONDS = 0.02

logger = logging.getLogger(__name__)


class GuardedClient(redis.PrefixedStrictRedis):
    """What kombu takes messages with."""

    def __init__(self, *arguments: Any, max_message_bytes: int, **options: Any) -> None:
        """`max_message_bytes` is the largest element that is looked into."""
        super().__init__(*arguments, **options)
        self.max_message_bytes = max_message_bytes

    def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
        """A reply of Redis; None for a list element that had to be dropped."""
        reply = super().parse_response(connection, command_name, **options)
        if command_name != "BRPOP" or not reply:
            return reply
        key, element = reply
        if key.endswith(b".pidbox"):
            # An answer to a remote-control command, as large as the worker has much to tell.
            return reply if _accept(check_reply, key, element) else None
        return reply if _accept(check_task, key, element, self.max_message_bytes) else None

    def pubsub(self, **options: Any) -> GuardedPubSub:
        """What kombu listens with for remote-control commands and events."""
        return GuardedPubSub(
            self.connection_pool,
            global_keyprefix=self.global_keyprefix,
            max_message_bytes=self.max_message_bytes,
            **options,
        )


class GuardedPubSub(redis.PrefixedRedisPubSub):
    """A subscription to remote-control commands and events."""

    def __init__(self, *arguments: Any, max_message_bytes: int, **options: Any) -> None:
        """`max_message_bytes` is the largest message that is looked into."""
        super().__init__(*arguments, **options)
        self.max_message_bytes = max_message_bytes

    def parse_response(self, *arguments: Any, **options: Any) -> Any:
        """What was published; None for what had to be dropped."""
        response = super().parse_response(*arguments, **options)
        if not response or not response[0].endswith(b"message"):
            return response
        channel, element = response[-2:]
        check = check_broadcast if channel.endswith(b".pidbox") else check_event
        return response if _accept(check, channel, element, self.max_message_bytes) else None


class GuardedQoS(redis.QoS):
    """Where unacknowledged messages are kept, and put back from."""

    def ack(self, delivery_tag: Any) -> None:
        """Forget a message, if it was kept: kombu would ask Redis in any case."""
        if delivery_tag in self._delivered:
            super().ack(delivery_tag)

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:  # noqa: FBT001, FBT002  # kombu's
        """Put a message back into its queue, unless it could never be delivered."""
        with self.channel.conn_or_acquire(client) as connection:
            stored = connection.hget(self.unacked_key, tag)
        if stored is None or _accept(check_unacknowledged, self.unacked_key.encode(), stored):
            super().restore_by_tag(tag, client, leftmost)
        else:
            self._remove_from_indices(tag).execute()


class GuardedChannel(redis.Channel):
    """A channel to Redis."""

    QoS = GuardedQoS
    _commands: Any = None
    max_message_bytes = DEFAULT_MAX_BYTES
    from_transport_options = (  # type: ignore[assignment]  # one longer
        *redis.Channel.from_transport_options,
        "max_message_bytes",
    )

    def _brpop_start(self, timeout: float | None = None) -> None:
        # A queue that is closed now is not asked again before the answer to this.
        soon = open_queues.bulk_is_closed(self.active_queues)
        super()._brpop_start(timeout=CLOSED_SECONDS if soon else timeout)

    def _get_client(self) -> Callable[..., GuardedClient]:
        return functools.partial(
            GuardedClient,
            global_keyprefix=self.global_keyprefix,
            max_message_bytes=self.max_message_bytes,
        )

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002  # kombu's
        """One client for all that waits for its answer: kombu would make one for each command.

        Making one takes longer than the command. It holds nothing but the channel's pool.
        """
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._pool is None and getattr(self.connection, "client", None) is None:
            # kombu would ask it for the host; an AttributeError is no lost connection to anybody,
            # and Celery would end the worker.
            raise ConnectionError("the connection was closed before this channel of it")
        if self._pool is None or self._commands is None:
            self._commands = super()._create_client()
        return self._commands


class GuardedSentinelChannel(GuardedChannel, redis.SentinelChannel):
    """A channel to the Redis that sentinels name as the master."""

    from_transport_options = (  # type: ignore[assignment]  # one longer
        *redis.SentinelChannel.from_transport_options,
        "max_message_bytes",
    )


class Transport(PutsAway, redis.Transport):
    """`redis://` and `rediss://`."""

    Channel = GuardedChannel


class SentinelTransport(PutsAway, redis.SentinelTransport):
    """`sentinel://`."""

    Channel = GuardedSentinelChannel


def _accept(
    check: Callable[[bytes], None], place: bytes, element: bytes, max_bytes: int | None = None
) -> bool:
    """Whether an element passes; if not, say so in one line that holds nothing of its content."""
    problem = _problem(check, element, max_bytes)
    if problem:
        # What follows the separator is the priority of a list of its own.
        name = place.partition(redis.Channel.sep.encode())[0].decode(errors="replace")
        logger.error("dropped a message from %s: %s (%d bytes)", name, problem, len(element))
    return problem is None


def _problem(check: Callable[[bytes], None], element: bytes, max_bytes: int | None) -> str | None:
    if max_bytes is not None and len(element) > max_bytes:
        return f"larger than {max_bytes} bytes (CAPTIONER_BROKER__MAX_MESSAGE_BYTES)"
    try:
        check(element)
    except MalformedError as error:
        return str(error)
    return None

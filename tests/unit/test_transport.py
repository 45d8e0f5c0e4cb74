"""Which transports are ours, and what each is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kombu.connection import Connection
from pydantic import SecretStr

from captioner.celery import EVENTS_QUEUE, QUEUES, SUBMISSIONS_QUEUE, create_app
from captioner.domain import Lane
from captioner.message_guard import GuardedChannel, GuardedClient, GuardedPubSub, GuardedQoS
from captioner.settings import BrokerSettings, Settings
from captioner.transport import broker_options


def settings(url: str, folder: Path) -> Settings:
    broker = BrokerSettings(url=SecretStr(url), sentinel_master="one", max_message_bytes=5000)
    return Settings(data_dir=folder, broker=broker)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "sentinel"])
def test_every_way_to_redis_is_guarded(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}://127.0.0.1:1/0"
    options = broker_options(settings(url, tmp_path))
    # kombu is untyped.
    connection: Any = Connection(url, transport_options=options)  # type: ignore[no-untyped-call]  # kombu has no types
    channel = connection.get_transport_cls().Channel
    assert issubclass(channel, GuardedChannel)
    assert channel.QoS is GuardedQoS
    assert set(options) <= set(channel.from_transport_options)
    assert options["max_message_bytes"] == 5000
    assert options.get("master_name") == ("one" if scheme == "sentinel" else None)
    client = GuardedClient(global_keyprefix="", max_message_bytes=5000)
    assert isinstance(client.pubsub(), GuardedPubSub)
    client.close()


def test_a_channel_that_outlives_its_connection_has_lost_it(redis_url: str, tmp_path: Path) -> None:
    """Then Celery connects again; of any other error the worker would end."""
    options = broker_options(settings(redis_url, tmp_path))
    connection: Any = Connection(redis_url, transport_options=options)  # type: ignore[no-untyped-call]  # kombu has no types
    channel, transport = connection.default_channel, connection.transport
    with channel.conn_or_acquire() as client:
        assert client.ping()
    channel._disconnect_pools()
    # As kombu leaves them, one after the other.
    for gone in (transport, "client"), (channel, "connection"):
        setattr(*gone, None)
        with pytest.raises(transport.connection_errors), channel.conn_or_acquire():
            pass


def test_the_embedded_transport_is_told_nothing(tmp_path: Path) -> None:
    assert broker_options(Settings(data_dir=tmp_path)) == {}


def test_each_lane_has_a_queue_bound_to_it_alone(tmp_path: Path) -> None:
    app = create_app(settings("redis://127.0.0.1:1/0", tmp_path))
    names = [SUBMISSIONS_QUEUE, *(QUEUES[lane] for lane in Lane), EVENTS_QUEUE]
    assert list(app.amqp.queues) == names
    assert names == f"{app.settings.queues},{EVENTS_QUEUE}".split(",")
    bindings = {(queue.exchange.name, queue.routing_key) for queue in app.amqp.queues.values()}
    assert bindings == {(name, name) for name in names}
    app.close()

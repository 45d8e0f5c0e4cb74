"""Which transports are ours, and what each is told."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from subprocess import run
from typing import Any
from unittest.mock import Mock

import pytest
from celery.worker import state as worker_state
from kombu.connection import Connection
from kombu.transport import redis
from kombu.transport import sqlalchemy as sqlalchemy_transport
from pydantic import SecretStr
from redis import exceptions as redis_errors

from captioner.broker.embedded import EMBEDDED_PREFIX, prepare_embedded_broker
from captioner.broker.message_guard import (
    CLOSED_SECONDS,
    GuardedChannel,
    GuardedClient,
    GuardedPubSub,
    GuardedQoS,
)
from captioner.broker.open_queues import open_queues
from captioner.broker.options import broker_options
from captioner.celery import create_app
from captioner.domain import Lane
from captioner.queues import EVENTS_QUEUE, QUEUES, SUBMISSIONS_QUEUE
from captioner.settings import BrokerSettings, Settings


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


@pytest.mark.parametrize(("plenty", "expected"), [(False, None), (True, CLOSED_SECONDS)])
def test_a_closed_queue_is_asked_again_soon(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plenty: bool, expected: object
) -> None:
    options = broker_options(settings(redis_url, tmp_path))
    waits: list[object] = []
    monkeypatch.setattr(
        redis.Channel, "_brpop_start", lambda _, timeout=None: waits.append(timeout)
    )
    monkeypatch.setattr(open_queues, "has_plenty", lambda: plenty)
    monkeypatch.setattr(GuardedChannel, "active_queues", {*QUEUES.values()})
    connection: Any = Connection(redis_url, transport_options=options)  # type: ignore[no-untyped-call]  # as above
    with connection:
        connection.channel()._brpop_start()
    assert waits == [expected]


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


@pytest.mark.parametrize("name", [SUBMISSIONS_QUEUE, *QUEUES.values(), EVENTS_QUEUE])
def test_redis_keeps_copies_of_requests_and_of_nothing_that_is_in_sql(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    app = create_app(settings(redis_url, tmp_path))
    copies: list[int] = []
    forgotten: list[str] = []
    forget: Any = GuardedQoS._remove_from_indices

    def count(qos: GuardedQoS, tag: str, pipe: Any = None) -> Any:
        forgotten.append(tag)
        return forget(qos, tag, pipe)

    monkeypatch.setattr(GuardedQoS, "_remove_from_indices", count)

    def take(message: Any) -> None:
        with connection.default_channel.conn_or_acquire() as client:
            copies.append(client.hlen("unacked"))
            message.ack()
            assert client.hlen("unacked") == 0

    app.send_task("any", queue=name)
    with app.connection_for_read() as connection:
        consumer = app.amqp.TaskConsumer(connection, queues=[app.amqp.queues[name]])
        consumer.on_message = take
        consumer.consume()
        connection.drain_events(timeout=10)
    app.close()
    kept = int(name == SUBMISSIONS_QUEUE)
    assert copies == [kept]
    assert len(forgotten) == kept  # each is a round trip


def test_the_embedded_broker_counts_what_waits_for_its_acknowledgement(tmp_path: Path) -> None:
    """There it is all that keeps a worker from taking more than it may have in hand."""
    with create_app(Settings(data_dir=tmp_path)) as app:
        assert not any(queue.no_ack for queue in app.amqp.queues.values())


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Any]:
    url = f"{EMBEDDED_PREFIX}{tmp_path / 'broker.sqlite3'}"
    prepare_embedded_broker(url)
    connection: Any = Connection(url)  # type: ignore[no-untyped-call]  # kombu has no types
    yield connection
    connection.release()


def test_an_embedded_queue_is_looked_into_when_something_was_written(
    embedded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    get: Any = sqlalchemy_transport.Channel._get

    def count(channel: Any, queue: str) -> Any:
        nonlocal looks
        looks += 1
        return get(channel, queue)

    monkeypatch.setattr(sqlalchemy_transport.Channel, "_get", count)
    reader, writer = embedded.channel(), embedded.channel()
    reader._active_queues = ["a", "b"]
    for round_number in range(3):
        for _ in range(5):
            for queue in ("a", "b"):
                with pytest.raises(Empty):
                    reader._get(queue)
        assert looks <= 4  # each queue once, and once more where that created it
        writer._put("a", {"round": round_number})
        assert reader._get("a") == {"round": round_number}
        looks = 0
    # By whomever it was written, also by another process.
    program = (
        "import sys; from captioner.broker.options import TRANSPORT_ALIASES;"
        "from kombu import Connection; Connection(sys.argv[1]).channel()._put('b', {'by': 'other'})"
    )
    run([sys.executable, "-c", program, embedded.as_uri()], check=True)
    assert reader._get("b") == {"by": "other"}
    reader.close()
    writer.close()


def test_who_waits_for_an_embedded_message_stops_when_the_worker_shall_end(
    embedded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        embedded.drain_events(timeout=1.0)
    assert time.monotonic() - started >= 1.0
    threading.Timer(0.1, monkeypatch.setattr, [worker_state, "should_stop", 0]).start()
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        embedded.drain_events(timeout=30.0)
    assert time.monotonic() - started < 5


def test_a_watch_that_fails_looks(embedded: Any) -> None:
    channel = embedded.channel()
    channel._active_queues = ["a"]
    for _ in range(2):
        with pytest.raises(Empty):
            channel._get("a")
    channel._watch.close()  # every question is an error now
    channel._put("a", {"sent": True})
    assert channel._get("a") == {"sent": True}
    with pytest.raises(Empty):
        channel._get("a")
    channel.close()


@pytest.mark.parametrize("embedded", [True, False], ids=["embedded", "redis"])
def test_a_lost_connection_is_put_away_and_gives_no_socket_a_timeout(
    embedded: bool, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{EMBEDDED_PREFIX}{tmp_path / 'broker.db'}" if embedded else redis_url
    prepare_embedded_broker(url)
    given: list[float | None] = []
    options = broker_options(settings(url, tmp_path))
    connection: Any = Connection(url, transport_options=options)  # type: ignore[no-untyped-call]  # kombu has no types
    channel, another = connection.default_channel, connection.channel()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "setdefaulttimeout", given.append)
        connection.collect(socket_timeout=5.0)
    assert given == []
    assert channel.closed
    assert another.closed
    assert not connection.connected
    # It serves again, as Celery's pool of connections to publish on needs.
    assert connection.default_channel is not channel
    connection.release()


@pytest.mark.parametrize("error", [redis_errors.ConnectionError, BrokenPipeError, AttributeError])
def test_what_goes_wrong_with_a_lost_connection_is_no_news(
    error: type[Exception], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection: Any = Connection(redis_url)  # type: ignore[no-untyped-call]  # kombu has no types
    monkeypatch.setattr(GuardedChannel, "close", Mock(side_effect=error("gone")))
    connection.default_channel  # noqa: B018  # it is made by being asked for
    connection.collect(socket_timeout=5.0)
    assert not connection.connected

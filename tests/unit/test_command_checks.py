"""Remote-control commands: what clients send passes, and what passes can be used by a worker."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from inspect import signature
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import pytest
from celery.events import EventDispatcher
from celery.exceptions import WorkerShutdown
from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from celery.worker.control import Panel
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.pidbox import Mailbox
from pydantic import SecretStr

from captioner.broker.command_checks import MAX_COUNT, check_command
from captioner.broker.envelope import MalformedError
from captioner.celery import CaptionerApp, create_app
from captioner.consumer import add_consumer
from captioner.queues import EVENTS_QUEUE, QUEUES, SUBMISSIONS_QUEUE
from captioner.settings import BrokerSettings, Settings

#: What they say when a worker was not started for them.
NOT_ENABLED = {"autoscale": ValueError, "pool_restart": ValueError, "objgraph": ImportError}
#: The one is the command line's name for revoking, and for the other no worker of ours is there.
UNUSED = {"terminate", "election"}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> CaptionerApp:
    broker = BrokerSettings(url=SecretStr("redis://nowhere"))
    return create_app(Settings(data_dir=tmp_path_factory.mktemp("data"), broker=broker))


@pytest.fixture(scope="module")
def handed(app: CaptionerApp) -> Iterator[Any]:
    """What Celery hands to its commands: a worker that has nothing, and no broker."""
    consumer: Any = Mock(app=app, gossip=None)
    consumer.controller.autoscaler = None
    consumer.timer.schedule.queue = []
    consumer.event_dispatcher = Mock(EventDispatcher, groups={"worker", "task"})
    consumer.task_consumer.queues = []
    consumer.add_task_queue = lambda *given: Consumer.add_task_queue(consumer, *given)
    consumer.cancel_task_queue = lambda *given: Consumer.cancel_task_queue(consumer, *given)
    # Later, in the loop, where an error ends the worker.
    consumer.call_soon = lambda called, *given: called(*given)
    limits = {task: (task.rate_limit, task.time_limit) for task in app.tasks.values()}
    yield SimpleNamespace(app=app, hostname="here", consumer=consumer, tset=set)
    for task, (rate, time) in limits.items():
        task.rate_limit, task.time_limit, task.soft_time_limit = rate, time, None
    worker_state.revoked.clear()
    worker_state.revoked_stamps.clear()


def celerys() -> set[str]:
    """Celery's own commands, one of which is ours here; benches add some of theirs."""
    modules = ("celery.worker.control", add_consumer.__module__)
    return {name for name, handler in Panel.data.items() if handler.__module__ in modules}


def use(handed: Any, method: str, arguments: dict[str, Any]) -> Any:
    with contextlib.suppress(*[NOT_ENABLED[method]] if method in NOT_ENABLED else []):
        return Panel.data[method](handed, **arguments)


def refuse(method: str, **arguments: Any) -> str:
    with pytest.raises(MalformedError) as error:
        check_command(method, arguments)
    return str(error.value)


# --- What clients send ----------------------------------------------------------------------------


@pytest.fixture
def sent(app: CaptionerApp) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What the clients would have published, as a worker reads it."""
    commands: list[tuple[str, dict[str, Any]]] = []

    def publish(_: object, method: str, arguments: Any, *_a: object, **_o: object) -> None:
        commands.append((method, json.loads(json.dumps(arguments))))

    with (
        patch.object(Mailbox, "_broadcast", publish),
        patch.object(app, "connection_or_acquire", lambda _: contextlib.nullcontext()),
    ):
        yield commands


def test_what_celerys_clients_send_is_accepted(
    app: CaptionerApp, sent: list[tuple[str, dict[str, Any]]]
) -> None:
    inspect, control = app.control.inspect(), app.control
    for method in (
        *("active", "active_queues", "clock", "conf", "memdump", "memsample", "objgraph", "ping"),
        *("registered", "registered_tasks", "report", "reserved", "revoked", "scheduled", "stats"),
    ):
        getattr(inspect, method)()
    inspect.active(safe=True)
    inspect.registered("rate_limit", "exchange")
    inspect.query_task("an-id")
    inspect.query_task("an-id", "another")
    inspect.hello("captioner@there", ["an-id"])
    for method in ("disable_events", "enable_events", "heartbeat", "ping", "pool_restart"):
        getattr(control, method)()
    control.pool_restart(["captioner.tasks"], reload=True)
    control.pool_grow(2)
    control.pool_shrink(2)
    control.autoscale(8, 2)
    control.revoke("an-id")
    control.revoke(["an-id", "another"], terminate=True, signal="KILL")
    control.terminate("an-id")
    control.revoke_by_stamped_headers({"site": ["a", "b"]}, terminate=True)
    control.rate_limit("captioner.caption", "10/m")
    control.rate_limit("captioner.caption", 0)
    control.time_limit("captioner.caption", soft=1, hard=2.5)
    control.add_consumer("captions")
    control.add_consumer("captions", exchange="captions", routing_key="captions")
    control.cancel_consumer("captions")
    control.shutdown()
    for method, arguments in sent:
        check_command(method, arguments)
    asked = {method for method, _ in sent}
    assert (
        asked
        >= {name for name in celerys() if name in Panel.meta and Panel.meta[name].visible} - UNUSED
    )


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("autoscale", {"min": 1, "max": 3}),
        ("pool_restart", {"reload": False}),
        ("rate_limit", {"task_name": "captioner.caption", "rate_limit": "1.5/s"}),
        ("revoke", {"task_id": "an-id", "terminate": 1, "signal": "SIGTERM"}),
        ("revoke_by_stamped_headers", {"headers": ["site=a", "user=b"]}),
        ("terminate", {"signal": "SIGTERM", "task_id": ["an-id"]}),
        ("dump_active", {}),
        ("dump_conf", {"with_defaults": True}),
    ],
)
def test_what_flower_and_the_command_line_send_is_accepted(
    method: str, arguments: dict[str, Any]
) -> None:
    check_command(method, arguments)


def test_a_sites_own_command_gets_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Panel.data, "of_the_site", lambda _state, _anything: None)
    check_command("of_the_site", {"anything": [{}]})


# --- What is malformed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("add_consumer", {"queue": ["a"]}),
        ("add_consumer", {"queue": {"a": 1}, "exchange": {}}),
        ("add_consumer", {"queue": "captions", "exchange_type": ["direct"]}),
        ("add_consumer", {"queue": "captions", "max_priority": "x"}),
        ("autoscale", {"max": "a", "min": -1}),
        ("cancel_consumer", {"queue": {"a": 1}}),
        ("hello", {"from_node": "z", "revoked": [["a"]]}),
        ("pool_grow", {"n": -5}),
        ("pool_grow", {"n": True}),
        ("pool_grow", {"n": MAX_COUNT + 1}),
        ("pool_shrink", {"n": 0.5}),
        ("query_task", {"ids": [[1]]}),
        ("query_task", {"ids": None}),
        ("rate_limit", {"task_name": "captioner.caption", "rate_limit": {"a": 1}}),
        ("rate_limit", {"task_name": "captioner.caption", "rate_limit": "nan/s"}),
        ("rate_limit", {"task_name": "captioner.caption", "rate_limit": "1/0"}),
        ("rate_limit", {"task_name": "captioner.caption", "rate_limit": float("nan")}),
        ("rate_limit", {"task_name": "captioner.caption", "rate_limit": -1}),
        ("registered", {"taskinfoitems": "name"}),
        ("revoke", {"task_id": [["a"]]}),
        ("revoke", {"task_id": "a\nb"}),
        ("revoke", {"task_id": "a", "signal": "NOPE"}),
        ("revoke_by_stamped_headers", {"headers": {"a": {"b": 1}}}),
        ("revoke_by_stamped_headers", {"headers": ["a"]}),
        ("time_limit", {"task_name": "captioner.caption", "hard": "x"}),
        ("time_limit", {"task_name": "captioner.caption", "soft": float("inf")}),
    ],
)
def test_arguments_that_a_worker_cannot_use(method: str, arguments: dict[str, Any]) -> None:
    assert refuse(method, **arguments).startswith(f"{method} ")


def test_arguments_that_do_not_belong_together() -> None:
    assert refuse("ping", state=1) == "ping was given an argument it does not have"
    assert refuse("revoke", terminate=True) == "revoke lacks an argument"
    assert refuse("secret-token") == "there is no such command"
    assert refuse("election", id=1, topic="task") == "captioner's workers elect nobody"


NAMES = st.sampled_from(
    [*QUEUES.values(), SUBMISSIONS_QUEUE, EVENTS_QUEUE, "evil", "captioner.caption", "5/m", "TERM"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | NAMES
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3)
)


@st.composite
def commands(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Any command with any values for arguments that it has."""
    method = draw(st.sampled_from(sorted(celerys())))
    _state, *names = signature(Panel.data[method]).parameters
    return method, draw(st.dictionaries(st.sampled_from([*names, "x"]), VALUES | SCALARS))


@given(command=commands())
@settings(max_examples=1_500, deadline=None)
def test_whatever_passes_can_be_used(handed: Any, command: tuple[str, dict[str, Any]]) -> None:
    """Any error is too much: in the loop of a worker it would end it."""
    method, arguments = command
    try:
        check_command(method, arguments)
    except MalformedError:
        return
    with contextlib.suppress(WorkerShutdown):
        use(handed, method, arguments)


# --- Queues ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [*QUEUES.values(), SUBMISSIONS_QUEUE, EVENTS_QUEUE])
def test_messages_may_be_taken_from_every_queue_of_ours(handed: Any, queue: str) -> None:
    assert Panel.data["add_consumer"] is add_consumer
    handed.consumer.task_consumer.consuming_from = lambda _: False
    assert use(handed, "add_consumer", {"queue": queue}) == {"ok": f"add consumer {queue}"}
    assert handed.consumer.task_consumer.add_queue.call_args.args[0].name == queue


def test_no_queue_is_made_for_whoever_names_one(handed: Any) -> None:
    added = handed.consumer.task_consumer.add_queue
    added.reset_mock()
    arguments = {"queue": "evil", "exchange_type": "nope"}
    assert use(handed, "add_consumer", arguments) == {"error": "no queue has the name 'evil'"}
    added.assert_not_called()

"""Clocks of what comes from others: none is refused that ours may have, and none spoils ours."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from captioner.broker.envelope import MalformedError
from captioner.broker.message_checks import check_broadcast, check_event, check_reply
from captioner.celery import FAR_AHEAD, CaptionerApp, create_app
from captioner.settings import BrokerSettings, Settings

EVENT = {"type": "worker-online", "hostname": "a", "timestamp": 1.0}
PING = {"method": "ping"}


def element(body: object, **headers: Any) -> bytes:
    """A message as it lies in Redis."""
    properties = {
        "body_encoding": "base64",
        "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
        "delivery_tag": "a",
    }
    envelope = {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }
    return json.dumps(envelope).encode()


def command(clock: object) -> None:
    check_broadcast(element(PING, clock=clock))


def reply(clock: object) -> None:
    check_reply(element({"a": {"ok": "pong"}}, clock=clock))


def event(clock: object) -> None:
    check_event(element([EVENT | {"clock": clock}]))


@pytest.fixture
def app(tmp_path: Path) -> CaptionerApp:
    broker = BrokerSettings(url=SecretStr("redis://nowhere"))
    return create_app(Settings(data_dir=tmp_path, broker=broker))


@pytest.mark.parametrize("check", [command, reply, event])
@pytest.mark.parametrize("clock", [None, 0, 1, 2**53 - 1])
def test_whatever_a_clock_says_what_comes_with_it_counts(
    check: Callable[[object], None], clock: int | None, app: CaptionerApp
) -> None:
    check(clock)
    app.clock.adjust(clock or 0)
    for _ in range(3):
        check(app.clock.forward())


@pytest.mark.parametrize("check", [command, reply, event])
@pytest.mark.parametrize("clock", [-1, 2**63, 1.5, "1", [1]])
def test_what_is_no_clock(check: Callable[[object], None], clock: object) -> None:
    with pytest.raises(MalformedError, match=r"^clock is "):
        check(clock)


def test_a_clock_goes_on_from_anothers_unless_that_cannot_be_true(app: CaptionerApp) -> None:
    assert app.clock.adjust(1_000) == 1_001
    for far in (FAR_AHEAD, 2**53 - 1, 2**63 - 1, float("inf"), float("nan")):
        before = app.clock.value
        assert app.clock.adjust(far) == app.clock.value == before + 1
    # The farthest that counts leaves room for more than anybody will ever send.
    app.clock.adjust(FAR_AHEAD - 1)
    command(app.clock.forward())

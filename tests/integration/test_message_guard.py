"""A worker meets every kind of malformed message we could think of, and goes on captioning."""

from __future__ import annotations

import base64
import bz2
import json
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from captioner.celery import FAR_AHEAD, create_app
from captioner.demo.scenes import draw, scenes
from captioner.domain import JobState
from captioner.jobs import Jobs
from captioner.store import upgrade
from processes import Worker, environment, running_worker, settings_of
from sentinels import RedisSentinel
from servers import RedisServer

MAX_BYTES = 100_000
SECRET = "secret-token"
JOB_ID = "7c9e6679-7425-40de-944b-e07fc1f90ae7"


def packed(body: object) -> str:
    return base64.b64encode(json.dumps(body).encode()).decode()


def message(body: object = ..., /, **replaced: Any) -> dict[str, Any]:
    """A good envelope for a job that nobody has, with some parts replaced (`...`: left out).

    `headers__x=1` replaces the header x.
    """
    job = [[], {"v": 1, "job_ids": [JOB_ID]}, {}]
    envelope: dict[str, Any] = {
        "body": packed(job if body is ... else body),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": "captioner.caption", "id": str(uuid.uuid4()), "lang": "py"},
        "properties": {
            "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": "captions"},
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    for name, value in replaced.items():
        *parents, last = name.split("__")
        place = envelope
        for parent in parents:
            place = place[parent]
        place.pop(last, None)
        if value is not ...:
            place[last] = value
    return envelope


def nested(depth: int) -> Any:
    value: Any = SECRET
    for _ in range(depth):
        value = [value]
    return value


def with_dashes(envelope: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("content_", "content-"): value for name, value in envelope.items()}


#: Elements as they lie in the list, by what is wrong with them.
ELEMENTS: dict[str, bytes | dict[str, Any]] = {
    "empty": b"",
    "text": SECRET.encode(),
    "half of a message": json.dumps(message()).encode()[:200],
    "two messages": json.dumps(message()).encode() * 2,
    "not utf-8": b'{"body": "\xff\xfe"}',
    "utf-16": json.dumps(message()).encode("utf-16"),
    "null bytes": b"\x00" * 100,
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07captain\x94.",
    "gzip": zlib.compress(json.dumps(message()).encode()),
    "a number": b"17",
    "null": b"null",
    "a list": b"[]",
    "a string": b'"captions"',
    "an object of nothing": b"{}",
    "nested too deeply to read": b"[" * 50_000 + b"]" * 50_000,
    "nested too deeply to write": json.dumps(message(headers__x=nested(900))).encode(),
    "a number of 5000 digits": b'{"properties": ' + b"9" * 5_000 + b"}",
    "a type of kombu's": b'{"__type__": "datetime", "__value__": "secret-token"}',
    "an unhashable type of kombu's": b'{"__type__": [], "__value__": 1}',
    "too large": json.dumps(message(headers__x="x" * MAX_BYTES)).encode(),
    "no properties": message(properties=...),
    "properties of a wrong type": message(properties=[]),
    "no delivery tag": message(properties__delivery_tag=...),
    "a delivery tag of a wrong type": message(properties__delivery_tag={"a": 1}),
    "an empty delivery tag": message(properties__delivery_tag=""),
    "no delivery info": message(properties__delivery_info=...),
    "no routing key": message(properties__delivery_info={"exchange": ""}),
    "a consumer tag that cannot be looked up": message(
        properties__delivery_info__consumer_tag=[1]
    ),
    "a priority of a wrong type": message(properties__priority="high"),
    "an infinite priority": message(properties__priority=float("inf")),
    "an unknown body encoding": message(properties__body_encoding="rot13"),
    "a reply address of a wrong type": message(properties__reply_to={}),
    "no headers": message(headers=...),
    "headers of a wrong type": message(headers=[SECRET]),
    "no task": message(headers__task=...),
    "a task of a wrong type": message(headers__task=["captioner.caption"]),
    "a task that is no name": message(headers__task=f"rm -rf / {SECRET}"),
    "an unknown task": message(headers__task="captioner.nonsense"),
    "a task that comes with Celery": message(
        [["x"] * 3, {"v": 1, "job_ids": [JOB_ID]}, {}], headers__task="celery.group"
    ),
    "no id": message(headers__id=...),
    "an id of a wrong type": message(headers__id=17),
    "an id with a line break": message(headers__id=f"a\nb {SECRET}"),
    "an id that is no unicode": message(headers__id="\ud800"),
    "a time limit of a wrong shape": message(headers__timelimit=[1]),
    "a time limit of a wrong type": message(headers__timelimit=["a", "b"]),
    "an eta that is no time": message(headers__eta=SECRET),
    "an eta": message(headers__eta="2999-01-01T00:00:00"),
    "an expiry before time": message(headers__expires="0001-01-01T00:00:00+14:00"),
    "retries of a wrong type": message(headers__retries="many"),
    "stamps of a wrong type": message(headers__stamped_headers=[{}]),
    "a header that hides a method of Celery's": message(headers__get=1),
    "a header that hides an attribute of Celery's": message(headers__chord={"task": "x"}),
    "a compression bomb": message(
        headers__compression="application/x-bz2",
        body=base64.b64encode(bz2.compress(b" " * 10**8)).decode(),
    ),
    "an encoding that decompresses": with_dashes(
        message(
            content_encoding="bz2", body=base64.b64encode(bz2.compress(b" " * 10**8)).decode()
        )
    ),
    "an unknown encoding": with_dashes(message(content_encoding=SECRET)),
    "an encoding of a wrong type": with_dashes(message(content_encoding=["utf-8"])),
    "pickle by its content type": with_dashes(
        message(content_type="application/x-python-serialize")
    ),
    "no content type": with_dashes(message(content_type=None)),
    "an unknown content type": with_dashes(message(content_type="text/x-secret-token")),
    "no body": message(body=...),
    "an empty body": message(body=""),
    "a body of a wrong type": message(body={"v": 1}),
    "a body that is not base64": message(body="a"),
    "a body that is not JSON": message(body=base64.b64encode(SECRET.encode()).decode()),
    "a body that is no unicode": message(body="\ud800", properties__body_encoding=None),
    "a body that is nested too deeply": message(nested(800)),
    "a body of one object": message({"v": 1, "job_ids": [JOB_ID]}),
    "a body of two parts": message([[], {"v": 1}]),
    "arguments of wrong types": message([{}, [], {}]),
    "no embedded part": message([[], {"v": 1, "job_ids": [JOB_ID]}, None]),
    "a callback": message([[], {"v": 1, "job_ids": [JOB_ID]}, {"callbacks": [{"task": SECRET}]}]),
    "an embedded attribute": message([[], {"v": 1, "job_ids": [JOB_ID]}, {"get": None}]),
    "a task of protocol 1": message(
        {"task": "captioner.caption", "id": "1", "args": [], "kwargs": {}}, headers={}
    ),
    "no keyword arguments": message([[], {}, {}]),
    "a keyword of Celery's": message([[], {"self": 1}, {}]),
    "positional arguments": message([[SECRET], {"v": 1, "job_ids": [JOB_ID]}, {}]),
    "another version": message([[], {"v": 2, "job_ids": [JOB_ID]}, {}]),
    "ids that are none": message([[], {"v": 1, "job_ids": [SECRET]}, {}]),
    "a submission of nothing": message([[], {"v": 1, "requests": []}, {}],
                                       headers__task="captioner.submit"),
    "a submission that is no list": message([[], {"v": 1, "requests": {}}, {}],
                                            headers__task="captioner.submit"),
}  # fmt: skip

BROADCASTS: dict[str, bytes | dict[str, Any]] = {
    "text": SECRET.encode(),
    "not utf-8": b"\xff\xfe",
    "null": b"null",
    "nested too deeply": b"[" * 50_000,
    "an object of nothing": b"{}",
    "no tag": message({"method": "ping"}, properties__delivery_tag=...),
    "a body that is not JSON": message(body="!"),
    "a list": message([1, 2]),
    "no method": message({"arguments": {}}),
    "a method of a wrong type": message({"method": ["ping"]}),
    "arguments of a wrong type": message({"method": "ping", "arguments": [SECRET]}),
    "a destination of a wrong type": message({"method": "ping", "destination": 17}),
    "a reply address without a key": message({"method": "ping", "reply_to": {"exchange": "a"}}),
    "a reply address that is none": message(
        {"method": "ping", "reply_to": {"exchange": "celery.pidbox", "routing_key": SECRET}}
    ),
    "a regular expression": message({"method": "ping", "pattern": "(.+)+x", "matcher": "pcre"}),
    "an argument of kombu's own": message({"method": "ping", "self": SECRET}),
    "an unknown command": message({"method": SECRET}),
    "an argument that Celery has": message({"method": "ping", "arguments": {"state": SECRET}}),
    "no argument": message({"method": "revoke"}),
    "a queue of a wrong type": message(
        {"method": "add_consumer", "arguments": {"queue": [SECRET]}}
    ),
    "a queue and an exchange of wrong types": message(
        {"method": "add_consumer", "arguments": {"queue": {SECRET: 1}, "exchange": {}}}
    ),
    "another queue of a wrong type": message(
        {"method": "cancel_consumer", "arguments": {"queue": {SECRET: 1}}}
    ),
    "a rate that is no number": message(
        {
            "method": "rate_limit",
            "arguments": {"task_name": "captioner.caption", "rate_limit": "nan/s"},
        }
    ),
    "a pool that shrinks by growing": message({"method": "pool_grow", "arguments": {"n": -50}}),
    "a clock of a wrong type": message({"method": "ping"}, headers={"clock": "noon"}),
    "too large": message({"method": "ping", "x": "x" * MAX_BYTES}),
}


def raw(element: bytes | dict[str, Any]) -> bytes:
    return element if isinstance(element, bytes) else json.dumps(element).encode()


@pytest.fixture
def env(tmp_path: Path, redis_url: str, sqlite_url: str) -> dict[str, str]:
    upgrade(sqlite_url)
    draw(next(iter(scenes(3, 1))), 128).save(tmp_path / "a.png")
    return environment(
        tmp_path,
        BROKER__URL=redis_url,
        BROKER__MAX_MESSAGE_BYTES=str(MAX_BYTES),
        BROKER__VISIBILITY_TIMEOUT_SECONDS="10",
        DATABASE__URL=sqlite_url,
    )


@pytest.fixture
def jobs(env: dict[str, str]) -> Iterator[Jobs]:
    with Jobs(settings_of(env)) as jobs:
        yield jobs


@pytest.fixture
def broker(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def assert_one_line_each(worker: Worker, kinds: int) -> None:
    errors = [line for line in worker.log.splitlines() if " ERROR " in line]
    assert len(errors) == kinds, worker.log
    assert all("dropped a message" in line for line in errors)
    assert "Traceback" not in worker.log
    assert SECRET not in worker.log
    assert len(max(worker.log.splitlines(), key=len)) < 500


def assert_empty(broker: redis.Redis) -> None:
    assert broker.llen("captioner:captions") == 0
    assert broker.hlen("captioner:unacked") == 0
    assert broker.zcard("captioner:unacked_index") == 0


@pytest.mark.long
def test_malformed_messages_cost_one_line_each(
    env: dict[str, str], jobs: Jobs, broker: redis.Redis, tmp_path: Path
) -> None:
    assert len(ELEMENTS) >= 30
    good = []
    with running_worker(tmp_path, env) as worker:
        for element in ELEMENTS.values():
            broker.lpush("captioner:captions", raw(element))
            good.append(jobs.submit(str(tmp_path / "a.png")))
        ended = list(jobs.wait_each([job.id for job in good], timeout_seconds=120))
        assert [job.state for job in ended] == [JobState.SUCCEEDED] * len(good), worker.log
        assert worker.stop() == 0
    assert_one_line_each(worker, len(ELEMENTS))
    assert_empty(broker)


@pytest.mark.long
def test_malformed_messages_that_are_put_back_cost_one_line_each(
    env: dict[str, str], jobs: Jobs, broker: redis.Redis, tmp_path: Path
) -> None:
    """What a worker took and did not acknowledge is read again after the visibility timeout."""
    stored: dict[str, bytes] = {name: raw(element) for name, element in ELEMENTS.items()}
    for name, element in ELEMENTS.items():
        try:
            entry = [json.loads(raw(element).decode()), "", "captions"]
        except (ValueError, RecursionError):
            continue
        stored[name] = json.dumps(entry).encode()
    for number, content in enumerate(stored.values()):
        broker.hset("captioner:unacked", f"tag-{number}", content)
        broker.zadd("captioner:unacked_index", {f"tag-{number}": 1.0})
    job = jobs.submit(str(tmp_path / "a.png"))
    (waiting,) = broker.lrange("captioner:captions", 0, -1)
    broker.delete("captioner:captions")
    # The good one comes last: until it does, the others are read.
    broker.hset("captioner:unacked", "good", json.dumps([json.loads(waiting), "", "captions"]))
    broker.zadd("captioner:unacked_index", {"good": 0.5})
    with running_worker(tmp_path, env) as worker:
        assert jobs.wait(job.id, timeout_seconds=200).state is JobState.SUCCEEDED
        assert worker.stop() == 0
    assert_one_line_each(worker, len(ELEMENTS))
    assert_empty(broker)


@pytest.mark.long
@pytest.mark.parametrize("command", ["captioner worker", "celery -A captioner worker"])
def test_malformed_commands_cost_one_line_each(
    env: dict[str, str], jobs: Jobs, broker: redis.Redis, tmp_path: Path, command: str
) -> None:
    app = create_app(jobs.settings)
    with running_worker(tmp_path, env, *command.split()) as worker:
        database = broker.get_connection_kwargs()["db"]
        for element in BROADCASTS.values():
            heard = broker.publish(f"captioner:/{database}.celery.pidbox", raw(element))
            assert heard == 1
        # Nobody here listens to events, which can end a worker in as many ways.
        elect = message({"type": "worker-elect", "hostname": "a", "timestamp": 1, "id": [SECRET]})
        assert broker.publish(f"captioner:/{database}.celeryev/worker.elect", raw(elect)) == 0
        for clock in (2**53 - 1, FAR_AHEAD - 1):
            far = message({"method": "heartbeat"}, headers={"clock": clock})
            broker.publish(f"captioner:/{database}.celery.pidbox", raw(far))
        evil = app.control.add_consumer(
            "evil", exchange_type="nope", reply=True, timeout=10, limit=1
        )
        assert [*evil[0].values()] == [{"error": "no queue has the name 'evil'"}]
        job = jobs.wait(jobs.submit(str(tmp_path / "a.png")).id, timeout_seconds=60)
        assert job.state is JobState.SUCCEEDED, worker.log
        (answer,) = app.control.ping(timeout=5)
        assert next(iter(answer.values())) == {"ok": "pong"}
        assert worker.stop() == 0
    app.close()
    assert_one_line_each(worker, len(BROADCASTS))


@pytest.mark.long
def test_behind_a_sentinel_malformed_messages_cost_one_line_each(
    env: dict[str, str], tmp_path: Path
) -> None:
    with RedisServer() as master, RedisSentinel(master) as sentinel:
        behind = env | {"CAPTIONER_BROKER__URL": sentinel.new_database()}
        with (
            Jobs(settings_of(behind)) as jobs,
            redis.Redis.from_url(master.url) as broker,
            running_worker(tmp_path, behind) as worker,
        ):
            for element in ELEMENTS.values():
                broker.lpush("captioner:captions", raw(element))
            job = jobs.wait(jobs.submit(str(tmp_path / "a.png")).id, timeout_seconds=60)
            assert job.state is JobState.SUCCEEDED, worker.log
            assert worker.stop() == 0
            assert_one_line_each(worker, len(ELEMENTS))
            assert_empty(broker)

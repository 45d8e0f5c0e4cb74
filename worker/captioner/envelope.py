"""What a message in Redis must look like before kombu and Celery may see it.

Both trust their messages: one that has another shape ends the worker, and some are back in the
queue when it is started again. So everything they read is checked here, once, and what captioner
has no use for (compression, ETAs, links, chords) is refused rather than tried.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from types import NoneType
from typing import Any

from celery.app.task import Context
from kombu.utils import json

#: Deeper messages can be read, but not always written again: the stack is another one then.
MAX_DEPTH = 50
#: Longest identifier and longest text in a header, in characters.
MAX_ID_CHARACTERS = 255
MAX_HEADER_CHARACTERS = 4_096
MAX_NUMBER = 2**53

_TASK_NAME = re.compile(r"[\w.\-]{1,255}")
_TEXT = (str, NoneType)
_NUMBER = (int, NoneType)
#: The headers Celery reads, and what each may be.
_HEADERS: Mapping[str, tuple[type, ...]] = {
    "argsrepr": _TEXT,
    "group": _TEXT,
    "group_index": _NUMBER,
    "ignore_result": (bool, NoneType),
    "kwargsrepr": _TEXT,
    "lang": _TEXT,
    "meth": _TEXT,
    "origin": _TEXT,
    "parent_id": _TEXT,
    "redelivered": (bool, NoneType),
    "replaced_task_nesting": _NUMBER,
    "retries": _NUMBER,
    "root_id": _TEXT,
    "stamped_headers": (list, NoneType),
    "stamps": (dict, NoneType),
    "timelimit": (list, NoneType),
}
#: Headers for which captioner has no use: jobs have deadlines of their own in SQL.
_REFUSED_HEADERS = ("compression", "eta", "expires", "shadow")
_EMBEDDED = {"callbacks", "chain", "chord", "errbacks"}


class MalformedError(Exception):
    """A message cannot be used; the text says why and holds nothing of its content."""


def check_task(element: bytes) -> None:
    """Check an element of a task queue.

    Raises:
        MalformedError: it is not a message of Celery's protocol 2 for a task.
    """
    _check_task(_parse(element, "the element"))


def check_unacknowledged(stored: bytes) -> None:
    """Check what kombu keeps of a message until it is acknowledged: `[message, exchange, key]`.

    Raises:
        MalformedError: it could not be delivered again.
    """
    entry = _parse(stored, "the element")
    match entry:
        case [message, str(), str()]:
            _check_task(message)
        case _:
            raise MalformedError("expected a message, an exchange and a routing key")


def check_broadcast(element: bytes) -> None:
    """Check a remote-control command.

    Raises:
        MalformedError: it is none.
    """
    message = _object(_parse(element, "the element"), "the message")
    command = _object(_body(message), "the body")
    _check_types(_headers(message), {"clock": _NUMBER, "expires": (int, float, NoneType)})
    if not isinstance(command.get("method"), str):
        raise MalformedError("the command has no method")
    _check_types(
        command,
        {
            "arguments": (dict, NoneType),
            "destination": (list, NoneType),
            "matcher": _TEXT,
            "pattern": _TEXT,
            "reply_to": (dict, NoneType),
            "ticket": _TEXT,
        },
    )
    reply_to = command.get("reply_to")
    if reply_to:
        _check_types(reply_to, {"exchange": (str,), "routing_key": (str,)})


def check_reply(element: bytes) -> None:
    """Check an answer to a remote-control command.

    Raises:
        MalformedError: it is none.
    """
    message = _object(_parse(element, "the element"), "the message")
    _object(_body(message), "the body")
    _check_types(_headers(message), {"clock": _NUMBER, "ticket": _TEXT})


def check_event(element: bytes) -> None:
    """Check an event, or a list of them, that another worker has sent.

    Raises:
        MalformedError: it is none.
    """
    message = _object(_parse(element, "the element"), "the message")
    _check_types(_headers(message), {"hostname": _TEXT})
    body = _body(message)
    for event in body if isinstance(body, list) else [body]:
        _check_types(
            _object(event, "an event"),
            {"type": (str,), "hostname": (str,), "timestamp": (int, float), "clock": _NUMBER},
        )


def _check_task(message: object) -> None:
    message = _object(message, "the message")
    _check_headers(_headers(message))
    match _body(message):
        case [list(), dict() as arguments, dict() as embedded]:
            if "self" in arguments:  # Celery's own, which would be given twice
                raise MalformedError("no keyword argument may have the name self")
            if embedded.keys() - _EMBEDDED or any(embedded.values()):
                raise MalformedError("links, chains and chords are not supported")
        case _:
            raise MalformedError("the body is not [args, kwargs, embed]")


def _parse(data: bytes, what: str) -> Any:
    try:
        # kombu's own reader, which also knows types of its own: what it makes of a message counts.
        value = json.loads(data)
    except RecursionError:
        raise MalformedError(f"{what} is nested too deeply") from None
    except Exception:  # noqa: BLE001  # whatever a reader of some type raises
        raise MalformedError(f"{what} is not JSON in UTF-8") from None
    if _deeper_than(value, MAX_DEPTH):
        raise MalformedError(f"{what} is nested too deeply")
    return value


def _deeper_than(value: object, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        level = [
            child
            for one in level
            if isinstance(one, dict | list)
            for child in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MalformedError(f"{what} is not a JSON object")
    return value


def _headers(message: Mapping[str, Any]) -> Mapping[str, Any]:
    return _object(message.get("headers"), "headers")


def _body(message: Mapping[str, Any]) -> Any:
    """The decoded body of a message, after everything that says how to decode it was checked."""
    if _headers(message).get("compression"):
        raise MalformedError("compressed messages are not accepted")
    if message.get("content-type") != "application/json":
        raise MalformedError("content-type is not application/json")
    encoding = message.get("content-encoding")
    if encoding is not None and not (isinstance(encoding, str) and encoding.lower() == "utf-8"):
        raise MalformedError("content-encoding is not utf-8")
    properties = _object(message.get("properties"), "properties")
    _check_properties(properties)
    body = message.get("body")
    if not isinstance(body, str) or not body:
        raise MalformedError("the message has no body")
    try:
        data = body.encode()
        if properties.get("body_encoding") == "base64":
            data = base64.b64decode(data)
    except ValueError:
        raise MalformedError("the body is not base64") from None
    return _parse(data, "the body")


def _check_properties(properties: Mapping[str, Any]) -> None:
    _check_id(properties.get("delivery_tag"), "delivery_tag")
    if properties.get("body_encoding") not in (None, "utf-8", "base64"):
        raise MalformedError("body_encoding is neither base64 nor utf-8")
    _check_types(
        properties,
        {"correlation_id": _TEXT, "priority": _NUMBER, "reply_to": _TEXT},
    )
    delivery_info = _object(properties.get("delivery_info"), "delivery_info")
    _check_types(delivery_info, {"exchange": (str,), "routing_key": (str,)})
    if any(isinstance(value, dict | list) for value in delivery_info.values()):
        raise MalformedError("delivery_info holds more than plain values")


def _check_headers(headers: Mapping[str, Any]) -> None:
    task = headers.get("task")
    if not isinstance(task, str) or not _TASK_NAME.fullmatch(task):
        raise MalformedError("the header task is not the name of a task")
    _check_id(headers.get("id"), "the header id")
    _check_types(headers, _HEADERS)
    match headers.get("timelimit"):
        case None | [None | int() | float(), None | int() | float()]:
            pass
        case _:
            raise MalformedError("timelimit is not a pair of numbers")
    if not all(isinstance(stamp, str) for stamp in headers.get("stamped_headers") or ()):
        raise MalformedError("stamped_headers holds more than names")
    for name in _REFUSED_HEADERS:
        if headers.get(name) is not None:
            raise MalformedError(f"the header {name} is not supported")
    for name in headers.keys() - _HEADERS.keys() - {"id", *_REFUSED_HEADERS}:
        # A site may add headers of its own, but Celery makes attributes of its request from them.
        if hasattr(Context, name):
            raise MalformedError("a header has the name of something of Celery's own")


def _check_id(value: object, what: str) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARACTERS:
        raise MalformedError(f"{what} is not a text of 1 to {MAX_ID_CHARACTERS} characters")
    if not value.isprintable():
        raise MalformedError(f"{what} is not printable")


def _check_types(values: Mapping[str, Any], types: Mapping[str, tuple[type, ...]]) -> None:
    for name, allowed in types.items():
        value = values.get(name)
        if not isinstance(value, allowed):
            raise MalformedError(f"{name} is of the wrong type")
        if isinstance(value, str) and len(value) > MAX_HEADER_CHARACTERS:
            raise MalformedError(f"{name} is too long")
        if isinstance(value, int | float) and not -MAX_NUMBER < value < MAX_NUMBER:
            raise MalformedError(f"{name} is out of range")

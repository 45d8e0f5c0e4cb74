"""What each kind of message must look like before kombu and Celery may see it.

Both trust their messages: one that has another shape ends the worker, and some are back in the
queue when it is started again. So everything they read is checked here, once, and what captioner
has no use for (compression, ETAs, links, chords) is refused rather than tried.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import NoneType
from typing import Any

from celery.app.task import Context

from captioner.broker.command_checks import check_command
from captioner.broker.envelope import (
    NUMBER,
    TEXT,
    MalformedError,
    as_object,
    body_of,
    check_clock,
    check_id,
    check_types,
    headers_of,
    parse,
)

_TASK_NAME = re.compile(r"[\w.\-]{1,255}")
#: Where kombu wants answers, of whatever namespace; a fanout exchange cannot be one.
_REPLY_EXCHANGE = re.compile(r"reply\.[\w.\-]{1,255}\.pidbox")
#: The headers Celery reads, and what each may be.
_HEADERS: Mapping[str, tuple[type, ...]] = {
    "argsrepr": TEXT,
    "group": TEXT,
    "group_index": NUMBER,
    "ignore_result": (bool, NoneType),
    "kwargsrepr": TEXT,
    "lang": TEXT,
    "meth": TEXT,
    "origin": TEXT,
    "parent_id": TEXT,
    "redelivered": (bool, NoneType),
    "replaced_task_nesting": NUMBER,
    "retries": NUMBER,
    "root_id": TEXT,
    "stamped_headers": (list, NoneType),
    "stamps": (dict, NoneType),
    "timelimit": (list, NoneType),
}
#: Headers for which captioner has no use: jobs have deadlines of their own in SQL.
_REFUSED_HEADERS = ("compression", "eta", "expires", "shadow")
_EMBEDDED = {"callbacks", "chain", "chord", "errbacks"}


def check_task(element: bytes) -> None:
    """Check an element of a task queue.

    Raises:
        MalformedError: it is not a message of Celery's protocol 2 for a task.
    """
    _check_task(parse(element, "the element"))


def check_unacknowledged(stored: bytes) -> None:
    """Check what kombu keeps of a message until it is acknowledged: `[message, exchange, key]`.

    Raises:
        MalformedError: it could not be delivered again.
    """
    entry = parse(stored, "the element")
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
    message = as_object(parse(element, "the element"), "the message")
    command = as_object(body_of(message), "the body")
    check_types(headers_of(message), {"expires": (int, float, NoneType)})
    check_clock(headers_of(message))
    if not isinstance(command.get("method"), str):
        raise MalformedError("the command has no method")
    check_types(
        command,
        {
            "arguments": (dict, NoneType),
            "destination": (list, NoneType),
            "matcher": TEXT,
            "pattern": TEXT,
            "reply_to": (dict, NoneType),
            "ticket": TEXT,
        },
    )
    if "self" in command:  # kombu's own, which would be given twice
        raise MalformedError("the command has an argument self")
    if command.get("matcher") not in (None, "glob"):
        # A regular expression can take hours, of every worker.
        raise MalformedError("the command's pattern is no glob")
    reply_to = command.get("reply_to")
    if reply_to:
        check_types(reply_to, {"exchange": (str,), "routing_key": (str,)})
        if not _REPLY_EXCHANGE.fullmatch(reply_to["exchange"]):
            raise MalformedError("reply_to is no place for replies")
    check_command(command["method"], command.get("arguments") or {})


def check_reply(element: bytes) -> None:
    """Check an answer to a remote-control command.

    Raises:
        MalformedError: it is none.
    """
    message = as_object(parse(element, "the element"), "the message")
    as_object(body_of(message), "the body")
    check_types(headers_of(message), {"ticket": TEXT})
    check_clock(headers_of(message))


def check_event(element: bytes) -> None:
    """Check an event, or a list of them, that another worker has sent.

    Raises:
        MalformedError: it is none.
    """
    message = as_object(parse(element, "the element"), "the message")
    check_types(headers_of(message), {"hostname": TEXT})
    body = body_of(message)
    for event in body if isinstance(body, list) else [body]:
        event = as_object(event, "an event")
        check_types(event, {"type": (str,), "hostname": (str,), "timestamp": (int, float)})
        check_clock(event)


def _check_task(message: object) -> None:
    message = as_object(message, "the message")
    _check_headers(headers_of(message))
    match body_of(message):
        case [list(), dict() as arguments, dict() as embedded]:
            if "self" in arguments:  # Celery's own, which would be given twice
                raise MalformedError("no keyword argument may have the name self")
            if embedded.keys() - _EMBEDDED or any(embedded.values()):
                raise MalformedError("links, chains and chords are not supported")
        case _:
            raise MalformedError("the body is not [args, kwargs, embed]")


def _check_headers(headers: Mapping[str, Any]) -> None:
    task = headers.get("task")
    if not isinstance(task, str) or not _TASK_NAME.fullmatch(task):
        raise MalformedError("the header task is not the name of a task")
    check_id(headers.get("id"), "the header id")
    check_types(headers, _HEADERS)
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

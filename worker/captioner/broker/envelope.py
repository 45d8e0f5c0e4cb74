"""The envelope that kombu puts around every message in Redis, read without trusting it.

Every function here raises `MalformedError` for what is not as it says.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from types import NoneType
from typing import Any

from kombu.utils import json

#: Deeper messages can be read, but not always written again: the stack is another one then.
MAX_DEPTH = 50
#: Longest identifier and longest text in a header, in characters.
MAX_ID_CHARACTERS = 255
MAX_HEADER_CHARACTERS = 4_096
MAX_NUMBER = 2**53
#: A clock counts messages, and may have been set far ahead by one that was crafted.
MAX_CLOCK = 2**63

#: What an optional text or number may be.
TEXT = (str, NoneType)
NUMBER = (int, NoneType)


class MalformedError(Exception):
    """A message cannot be used; the text says why and holds nothing of its content."""


def parse(data: bytes, what: str) -> Any:
    """JSON in UTF-8 of a bounded depth; `what` it is called in an error."""
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


def as_object(value: object, what: str) -> Mapping[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise MalformedError(f"{what} is not a JSON object")
    return value


def headers_of(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The headers of a message, not looked into."""
    return as_object(message.get("headers"), "headers")


def body_of(message: Mapping[str, Any]) -> Any:
    """The decoded body of a message, after everything that says how to decode it was checked."""
    if headers_of(message).get("compression"):
        raise MalformedError("compressed messages are not accepted")
    if message.get("content-type") != "application/json":
        raise MalformedError("content-type is not application/json")
    encoding = message.get("content-encoding")
    if encoding is not None and not (isinstance(encoding, str) and encoding.lower() == "utf-8"):
        raise MalformedError("content-encoding is not utf-8")
    properties = as_object(message.get("properties"), "properties")
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
    return parse(data, "the body")


def _check_properties(properties: Mapping[str, Any]) -> None:
    check_id(properties.get("delivery_tag"), "delivery_tag")
    if properties.get("body_encoding") not in (None, "utf-8", "base64"):
        raise MalformedError("body_encoding is neither base64 nor utf-8")
    check_types(
        properties,
        {"correlation_id": TEXT, "priority": NUMBER, "reply_to": TEXT},
    )
    delivery_info = as_object(properties.get("delivery_info"), "delivery_info")
    check_types(delivery_info, {"exchange": (str,), "routing_key": (str,)})
    if any(isinstance(value, dict | list) for value in delivery_info.values()):
        raise MalformedError("delivery_info holds more than plain values")


def check_id(value: object, what: str) -> None:
    """Check an identifier: a short text that can be printed."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARACTERS:
        raise MalformedError(f"{what} is not a text of 1 to {MAX_ID_CHARACTERS} characters")
    if not value.isprintable():
        raise MalformedError(f"{what} is not printable")


def check_types(values: Mapping[str, Any], types: Mapping[str, tuple[type, ...]]) -> None:
    """Check named values: their types, and that texts and numbers are of a sensible size."""
    for name, allowed in types.items():
        value = values.get(name)
        if not isinstance(value, allowed):
            raise MalformedError(f"{name} is of the wrong type")
        if isinstance(value, str) and len(value) > MAX_HEADER_CHARACTERS:
            raise MalformedError(f"{name} is too long")
        if isinstance(value, int | float) and not -MAX_NUMBER < value < MAX_NUMBER:
            raise MalformedError(f"{name} is out of range")


def check_clock(values: Mapping[str, Any]) -> None:
    """Check a Lamport clock, if there is one.

    Whoever refused one because it is far ahead would hear nothing more of its sender: it is for the
    one that sets its own by it to take no notice.
    """
    clock = values.get("clock")
    if not isinstance(clock, NUMBER):
        raise MalformedError("clock is of the wrong type")
    if clock is not None and not 0 <= clock < MAX_CLOCK:
        raise MalformedError("clock is out of range")

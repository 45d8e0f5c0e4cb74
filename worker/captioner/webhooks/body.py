"""The body of a webhook: `{"type", "timestamp", "data"}`, always less than 20 kB.

`data` is the job as programs see it everywhere (`Job.as_mapping`), without its `webhook_url`, which
is nobody's business but its receiver's, who knows it. Of one that is too large, these
go, in this order and only as far as needed, and `data` then has `"truncated": true`: the metadata,
the options, all captions but the best, what texts have beyond their first 200 characters, and at
last everything but the id and the state. The whole job is in SQL.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from captioner.domain import Job
from captioner.events import Event

#: What Standard Webhooks recommends; receivers may refuse more.
MAX_BODY_BYTES = 20_000
_LONGEST_TEXT_CHARACTERS = 200


def webhook_body(event: Event, job: Job) -> bytes:
    """The body that tells of an event: the same bytes on every attempt."""
    told = job.as_mapping()
    del told["webhook_url"]
    for data in _ever_smaller(told):
        body = encoded(event.type, event.occurred_at, data)
        if len(body) < MAX_BODY_BYTES:
            return body
    raise AssertionError("an id and a state are short")


def encoded(kind: str, occurred_at: datetime, data: dict[str, Any]) -> bytes:
    """A body as it is sent.

    Args:
        kind: the event's type.
        occurred_at: when it happened, not when it is sent; with a time zone.
        data: what there is to tell.
    """
    timestamp = occurred_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    value = {"type": kind, "timestamp": timestamp, "data": data}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _ever_smaller(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield data
    for shrink in _SHRINKING:
        data = {**shrink(data), "truncated": True}
        yield data


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return value[:_LONGEST_TEXT_CHARACTERS]
    if isinstance(value, dict):
        return {key: _shortened(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shortened(one) for one in value]
    return value


_SHRINKING: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (
    lambda data: {**data, "metadata": {}},
    lambda data: {**data, "options": {}},
    lambda data: {**data, "captions": data["captions"][:1]},
    _shortened,
    lambda data: {"id": data["id"], "state": data["state"]},
)

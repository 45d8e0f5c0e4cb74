"""Requests as JSON objects: in the messages of direct producers and in files of items."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

from captioner.domain import CaptionRequest, Lane
from captioner.errors import InvalidRequestError
from captioner.options import AltTextOptions, GenerationOptions, VideoOptions
from captioner.source import Source
from captioner.suffixes import VIDEO_SUFFIXES

#: What an item of a file may hold.
ITEM_FIELDS = frozenset({"source", "prompt", "options", "metadata", "client_key", "webhook_url"})
#: What a request of a message may hold.
MESSAGE_FIELDS = ITEM_FIELDS | {"deadline", "id", "lane"}


def options_from(
    given: Mapping[str, Any], prompt: str | None, defaults: Mapping[str, Any]
) -> GenerationOptions:
    """Options by name, over defaults; a request that samples need not say that it has no beams.

    Raises:
        InvalidRequestError: a name is unknown, a value cannot be used, or there are two prompts.
    """
    values = {**defaults, **given}
    values.pop("alt_text", None)  # it is `alt_text_from`'s
    values.pop("video", None)  # it is `video_from`'s
    if given.get("do_sample") is True and "num_beams" not in given:
        values["num_beams"] = 1
    if prompt is not None:
        if given.get("prompt") not in (None, prompt):
            raise InvalidRequestError("prompt is given twice, in options too")
        values["prompt"] = prompt
    return GenerationOptions.from_mapping(values)


def alt_text_from(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> AltTextOptions:
    """The `alt_text` of options by name, or of the defaults.

    Raises:
        InvalidRequestError: a name is unknown or a value cannot be used.
    """
    return AltTextOptions.from_mapping(given.get("alt_text", defaults.get("alt_text", {})))


def video_from(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> VideoOptions:
    """The `video` of options by name, or of the defaults.

    Raises:
        InvalidRequestError: a name is unknown or a value cannot be used.
    """
    return VideoOptions.from_mapping(given.get("video", defaults.get("video", {})))


def lane_of(source: Source, video: VideoOptions, otherwise: Lane) -> Lane:
    """The lane of a request that names none: what looks like a video waits among the videos.

    It does by its media type, its suffix, or options that only a video has. What a file really is
    its content says, which nobody has seen yet.
    """
    if source.scheme == "data":
        looks = source.uri[5:11].lower() == "video/"
    else:
        name = source.path if source.scheme == "file" else source.display.partition("?")[0]
        looks = PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES
    return Lane.VIDEO if looks or video != VideoOptions() else otherwise


def request_from_item(fields: object, defaults: Mapping[str, Any]) -> CaptionRequest:
    """The request of one line of a file; it waits in the bulk lane, or in that of videos.

    Args:
        fields: what the line holds, already read as JSON.
        defaults: generation options of items that name none.

    Raises:
        InvalidRequestError: it cannot be used; the text names the field.
    """
    given = _object(fields, ITEM_FIELDS)
    return _request(given, defaults, None, otherwise=Lane.BULK)


def request_from_message(fields: object, defaults: Mapping[str, Any]) -> CaptionRequest:
    """One request of a `captioner.submit` message.

    Args:
        fields: the request as the producer wrote it.
        defaults: generation options of requests that name none.

    Raises:
        InvalidRequestError: it cannot be used; the text names the field.
    """
    given = _object(fields, MESSAGE_FIELDS)
    request_id = as_uuid(given.get("id"))
    if request_id is None:
        raise InvalidRequestError("id must be a UUID, as text")
    lane = given.get("lane")
    if "lane" in given and lane not in list(Lane):
        raise InvalidRequestError(f"lane must be {' or '.join(Lane)}")
    return _request(
        given,
        defaults,
        Lane(lane) if lane else None,
        id=request_id,
        deadline_at=_time(given.get("deadline")),
    )


def as_uuid(value: object) -> UUID | None:
    """The id a text holds, or None."""
    if not isinstance(value, str):
        return None
    try:
        return UUID(value)
    except ValueError:
        return None


def _time(value: object) -> datetime | None:
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value)  # type: ignore[arg-type]  # it says so itself
    except (TypeError, ValueError):
        raise InvalidRequestError("deadline must be a time in ISO 8601, with its zone") from None


def _object(fields: object, known: frozenset[str]) -> Mapping[str, Any]:
    if not isinstance(fields, dict):
        raise InvalidRequestError("expected a JSON object")
    if fields.keys() - known:
        raise InvalidRequestError(f"unknown field; known are {', '.join(sorted(known))}")
    return fields


def _request(
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    lane: Lane | None,
    otherwise: Lane = Lane.INTERACTIVE,
    **placed: Any,
) -> CaptionRequest:
    prompt, options = given.get("prompt"), given.get("options") or {}
    metadata, client_key = given.get("metadata") or {}, given.get("client_key")
    for name, value, kind in (
        ("prompt", prompt, str),
        ("client_key", client_key, str),
        ("options", options, dict),
        ("metadata", metadata, dict),
    ):
        if value is not None and not isinstance(value, kind):
            wanted = "a text" if kind is str else "a JSON object"
            raise InvalidRequestError(f"{name} must be {wanted}")
    source, video = Source(given.get("source", "")), video_from(options, defaults)
    return CaptionRequest(
        source=source,
        options=options_from(options, prompt, defaults),
        alt_text=alt_text_from(options, defaults),
        video=video,
        lane=lane or lane_of(source, video, otherwise),
        client_key=client_key,
        metadata=metadata,
        webhook_url=given.get("webhook_url"),
        **placed,
    )

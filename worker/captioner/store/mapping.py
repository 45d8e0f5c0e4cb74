"""Between rows and the domain's values, and what may be stored at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from captioner.domain import (
    Caption,
    CaptionRequest,
    ClaimedJob,
    Job,
    JobFailure,
    JobState,
    ModelInfo,
)
from captioner.errors import ErrorCode, InvalidRequestError
from captioner.options import options_as_stored, options_from_mapping, options_mapping
from captioner.source import Source
from captioner.store.models import CaptionRow, JobRow

#: Longest error message kept, in characters.
MAX_MESSAGE_CHARACTERS = 2_000
_MODEL_FIELDS = frozenset(field.name for field in dataclasses.fields(ModelInfo))
#: What a caption row has beside its job.
CAPTION_FIELDS = tuple(
    column.key for column in CaptionRow.__table__.columns if column.key != "job_id"
)
#: Of `jobs`, what `claimed_from_row` reads.
CLAIMED_COLUMNS = (
    JobRow.id,
    JobRow.attempt,
    JobRow.retries,
    JobRow.crashes,
    JobRow.frames_done,
    JobRow.frames_total,
    JobRow.source,
    JobRow.options,
    JobRow.client_key,
    JobRow.client_metadata,
    JobRow.lane,
    JobRow.deadline_at,
    JobRow.webhook_url,
)

_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False).encode
_encode_sorted = json.JSONEncoder(allow_nan=False, ensure_ascii=False, sort_keys=True).encode
_caption_values = operator.attrgetter(*CAPTION_FIELDS)


def canonical_json(value: object) -> str:
    """As `storable_json`, with keys sorted: the same text for the same value."""
    return storable_json(value, encode=_encode_sorted)


def storable_json(value: object, *, encode: Callable[[object], str] = _encode) -> str:
    """`value` as JSON that both databases can store.

    Both must refuse the same values: PostgreSQL has no NUL in texts and no NaN in JSON, neither
    can encode half a surrogate pair, and SQLite turns NaN into NULL.

    Raises:
        ValueError: `value` is no JSON, or holds one of these.
    """
    try:
        text = encode(value)
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("text that is not valid Unicode") from None
    except (TypeError, RecursionError) as error:
        raise ValueError(f"a value that JSON does not know: {error}") from None
    # Without escaped backslashes, this sequence can only be a NUL.
    if "\\u0000" in text.replace("\\\\", ""):
        raise ValueError("a NUL character")
    return text


def job_values(request: CaptionRequest, *, created_at: datetime) -> dict[str, Any]:
    """The row of a new job.

    Raises:
        InvalidRequestError: the request holds what cannot be stored.
    """
    options = options_mapping(request.options, request.alt_text, request.video)
    metadata = dict(request.metadata)
    for name, value in (
        ("source", request.source.uri),
        ("client_key", request.client_key),
        ("options", options),
        ("metadata", metadata),
    ):
        try:
            canonical_json(value)
        except ValueError as error:
            raise InvalidRequestError(f"{name} cannot be stored: it holds {error}") from None
    return {
        "id": request.id,
        "state": JobState.QUEUED,
        "lane": request.lane,
        "source": request.source.uri,
        "source_display": request.source.display,
        "options": options,
        "metadata": metadata,
        "client_key": request.client_key,
        "fingerprint": fingerprint(request),
        "deadline_at": request.deadline_at,
        "webhook_url": request.webhook_url,
        "attempt": 0,
        "retries": 0,
        "losses": 0,
        "crashes": 0,
        "created_at": created_at,
        "timings": {},
    }


def fingerprint(request: CaptionRequest) -> str:
    """SHA-256 of what makes two requests the same: source and options.

    Not the deadline: a client that submits again after an error computes a new one, and means the
    same job. That of the first submission holds, and so does its webhook URL.
    """
    options = options_mapping(request.options, request.alt_text, request.video)
    asked = canonical_json([request.source.uri, options])
    return hashlib.sha256(asked.encode()).hexdigest()


def job_from_row(row: Row[Any], captions: Sequence[Caption] = ()) -> Job:
    """The job of one row of `jobs`, as it is to be shown.

    Raises:
        InvalidRequestError: another version wrote a source that this one refuses.
    """
    options, alt_text, video = options_as_stored(row.options)
    return Job(
        id=row.id,
        state=row.state,
        source=Source(row.source),
        options=options,
        alt_text=alt_text,
        video=video,
        client_key=row.client_key,
        metadata=row.metadata,
        lane=row.lane,
        deadline_at=row.deadline_at,
        webhook_url=row.webhook_url,
        attempt=row.attempt,
        retries=row.retries,
        crashes=row.crashes,
        owner=row.owner,
        not_before=row.not_before,
        created_at=row.created_at,
        dispatched_at=row.dispatched_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        failure=_failure(row),
        model=_model(row.model),
        timings=row.timings,
        frames_done=row.frames_done,
        frames_total=row.frames_total,
        captions=tuple(captions),
    )


def claimed_from_row(row: Row[Any]) -> ClaimedJob:
    """What a worker gets of a row that has `CLAIMED_COLUMNS`, in their order.

    Raises:
        InvalidRequestError: another version wrote options or a source that this one refuses.
    """
    values: Sequence[Any] = row
    job_id, attempt, retries, crashes, frames_done, frames_total, *asked = values
    source, stored, client_key, metadata, lane, deadline_at, webhook_url = asked
    options, alt_text, video = options_from_mapping(stored)
    request = CaptionRequest(
        id=job_id,
        source=Source(source),
        options=options,
        alt_text=alt_text,
        video=video,
        client_key=client_key,
        metadata=metadata,
        lane=lane,
        deadline_at=deadline_at,
        webhook_url=webhook_url,
    )
    return ClaimedJob(
        request=request,
        attempt=attempt,
        retries=retries,
        crashes=crashes,
        frames_done=frames_done,
        frames_total=frames_total,
    )


def new_job(request: CaptionRequest, created_at: datetime) -> Job:
    """The job that `job_values` makes, without reading it back."""
    return Job(
        id=request.id,
        state=JobState.QUEUED,
        source=request.source,
        options=request.options,
        alt_text=request.alt_text,
        video=request.video,
        client_key=request.client_key,
        metadata=dict(request.metadata),
        lane=request.lane,
        deadline_at=request.deadline_at,
        webhook_url=request.webhook_url,
        attempt=0,
        retries=0,
        crashes=0,
        owner=None,
        not_before=None,
        created_at=created_at,
        dispatched_at=None,
        started_at=None,
        finished_at=None,
        failure=None,
        model=None,
        timings={},
        frames_done=None,
        frames_total=None,
    )


def caption_values(caption: Caption) -> dict[str, Any]:
    """The row of a caption, without its job."""
    return dict(zip(CAPTION_FIELDS, _caption_values(caption), strict=True))


def caption_from_row(row: Row[Any]) -> tuple[UUID, Caption]:
    """The job's id and the caption of one row of `captions`."""
    return row.job_id, Caption(**{name: getattr(row, name) for name in CAPTION_FIELDS})


def clean_message(message: str) -> str:
    """An error's text made storable: it reports a problem and must not become one."""
    text = message[:MAX_MESSAGE_CHARACTERS].replace("\x00", "�")
    return text.encode(errors="replace").decode()


def _failure(row: Row[Any]) -> JobFailure | None:
    if row.error_code is None:
        return None
    message = row.error_message or ""
    try:
        code = ErrorCode(row.error_code)
    except ValueError:  # a newer version's
        code, message = ErrorCode.INTERNAL, f"{row.error_code}: {message}"
    return JobFailure(code, message, bool(row.error_retryable))


def _model(stamp: Mapping[str, Any] | None) -> ModelInfo | None:
    if stamp is None:
        return None
    # A newer version may have stamped more.
    return ModelInfo(**{name: value for name, value in stamp.items() if name in _MODEL_FIELDS})

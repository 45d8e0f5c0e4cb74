"""Submissions of producers without a database: messages made into rows.

A producer cannot be answered, so a request that cannot be used becomes a failed job wherever it
can: it is then found by its id like any other, and its event tells those who listen.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress

from captioner.celery import CaptionerApp
from captioner.domain import CaptionRequest, Job, JobFailure
from captioner.errors import (
    CaptionerError,
    DuplicateClientKeyError,
    ErrorCode,
    InvalidRequestError,
    describe,
)
from captioner.request_json import as_uuid, request_from_message
from captioner.source import Source
from captioner.store import Store, Submission
from captioner.submitting import add_each, dispatch

#: Of an error's text, in a log line: it may quote what the producer sent.
SHOWN_CHARACTERS = 200

logger = logging.getLogger(__name__)


def receive(app: CaptionerApp, store: Store, requests: Sequence[object]) -> Mapping[str, int]:
    """Insert what is new among these requests and publish it; a repeated one changes nothing.

    Args:
        app: publishes, and has the defaults of requests that name no options.
        store: where jobs are inserted.
        requests: as the producer wrote them.

    Returns:
        How many were `new`, `known` and `refused`.

    Raises:
        StoreUnavailableError: the database cannot be reached; call again with the same requests.
    """
    defaults = app.settings.generation.model_dump()
    counts = Counter({"new": 0, "known": 0, "refused": 0})
    usable: list[CaptionRequest] = []
    for fields in requests:
        try:
            usable.append(request_from_message(fields, defaults))
        except Exception as error:  # noqa: BLE001  # the others of the message must not suffer
            counts["refused"] += 1
            _refuse(store, fields, error)
    new: list[Job] = []
    for request, result in zip(usable, add_each(store, usable), strict=True):
        if isinstance(result, Submission):
            counts["new" if result.created else "known"] += 1
            new += [result.job] if result.created else []
        else:
            counts["refused"] += 1
            _refuse(store, {"id": str(request.id), "source": request.source.uri}, result)
    dispatch(app, store, new)
    return counts


def _refuse(store: Store, fields: object, error: Exception) -> None:
    """Say it in one line, and record a failed job when the request has a usable id and source."""
    given = fields if isinstance(fields, dict) else {}
    request_id = as_uuid(given.get("id"))
    why = (str(error) if isinstance(error, CaptionerError) else describe(error))[:SHOWN_CHARACTERS]
    name = request_id or "without a usable id"
    logger.error("refused the request %s of a submission: %s", name, why)
    # The id or key of another job says nothing that this one could be recorded under.
    if request_id is None or isinstance(error, DuplicateClientKeyError):
        return
    with suppress(DuplicateClientKeyError, InvalidRequestError):
        request = CaptionRequest(id=request_id, source=Source(given.get("source", "")))
        store.add_refused(request, JobFailure(ErrorCode.INVALID_REQUEST, why, retryable=False))

"""Recording how attempts ended: state, captions and one event, or nothing at all."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from datetime import datetime
from itertools import chain
from typing import Any
from uuid import UUID

from captioner.domain import JobFailure, JobState, ModelInfo, Outcome
from captioner.errors import ErrorCode, describe
from captioner.store.mapping import caption_values, clean_message, storable_json
from captioner.store.record_statements import Prepared, write_combined, write_one
from captioner.store.transactions import Database, is_row_problem

logger = logging.getLogger(__name__)


def record(
    database: Database, outcomes: Sequence[Outcome], now: datetime, *, skip_locked: bool
) -> set[UUID]:
    """Write what can be written; see `Store.record`."""
    first: dict[tuple[UUID, int], Outcome] = {}
    for outcome in outcomes:
        first.setdefault((outcome.job_id, outcome.attempt), outcome)
    if not first:
        return set()
    try:
        return _write(database, list(first.values()), now, skip_locked=skip_locked)
    except Exception as error:
        if not is_row_problem(error):
            raise
    # One of them is at fault, and the others must not pay for it.
    recorded: set[UUID] = set()
    for outcome in first.values():
        recorded |= _write_alone(database, outcome, now, skip_locked=skip_locked)
    return recorded


def _write_alone(
    database: Database, outcome: Outcome, now: datetime, *, skip_locked: bool
) -> set[UUID]:
    try:
        return _write(database, [outcome], now, skip_locked=skip_locked)
    except Exception as error:
        if not is_row_problem(error):
            raise
        unstorable = _unstorable(outcome, error)
        return _write(database, [unstorable], now, skip_locked=skip_locked)


def _unstorable(outcome: Outcome, error: Exception) -> Outcome:
    """The outcome of a job whose result the database cannot hold: better failed than lost."""
    problem = describe(getattr(error, "orig", None) or error)
    logger.warning(
        "the result of a job cannot be stored: %s", problem, extra={"job_id": str(outcome.job_id)}
    )
    failure = JobFailure(
        ErrorCode.INTERNAL, f"the result cannot be stored: {problem}", retryable=False
    )
    return Outcome(
        job_id=outcome.job_id,
        attempt=outcome.attempt,
        state=JobState.FAILED,
        failure=failure,
        frames_done=outcome.frames_done,
    )


def _prepare(outcome: Outcome) -> Prepared:
    """The rows of an outcome."""
    if not outcome.state.terminal:
        raise ValueError(f"{outcome.state} is no state a job ends in")
    failure, timings = outcome.failure, dict(outcome.timings)
    succeeded = outcome.state is JobState.SUCCEEDED
    job_id = str(outcome.job_id)
    key = {"job_id": job_id, "attempt": outcome.attempt}
    captions = [key | caption_values(one) for one in outcome.captions] if succeeded else []
    job = {
        "job_id": job_id,
        "attempt": outcome.attempt,
        "state": outcome.state,
        "error_code": failure and failure.code,
        "error_message": failure and clean_message(failure.message),
        "error_retryable": failure and failure.retryable,
        "model": outcome.model and _stamp(outcome.model),
        "timings": timings,
    }
    if outcome.frames_done is not None:
        job["frames_done"] = outcome.frames_done
    return Prepared(outcome, job, captions)


@functools.lru_cache(maxsize=16)
def _stamp(model: ModelInfo) -> dict[str, Any]:
    """The same for all results of a worker; not to be changed."""
    return dataclasses.asdict(model)


def _write(
    database: Database, outcomes: Sequence[Outcome], now: datetime, *, skip_locked: bool
) -> set[UUID]:
    prepared = [_prepare(outcome) for outcome in outcomes]
    # Encoded together: one by one takes twice as long. Where no JSON is written it is the check
    # for what not every database refuses by itself.
    jobs = storable_json([one.job for one in prepared])
    captions = storable_json([*chain.from_iterable(one.captions for one in prepared)])
    if database.combines:
        with database.statement(skips_locked=skip_locked) as connection:
            ids = [one.outcome.job_id for one in prepared]
            videos = any(one.is_video for one in prepared)
            return write_combined(
                connection, ids, jobs, captions, now, videos=videos, skip_locked=skip_locked
            )
    with database.transaction() as connection:
        return {one.outcome.job_id for one in prepared if write_one(connection, one, now)}

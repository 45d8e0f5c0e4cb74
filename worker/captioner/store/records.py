"""Recording how attempts ended: state, captions and one event, or nothing at all."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from captioner.domain import JobFailure, JobState, ModelInfo, Outcome
from captioner.errors import ErrorCode, describe
from captioner.store.mapping import canonical_json, caption_values, clean_message
from captioner.store.record_statements import Prepared, write_combined, write_one
from captioner.store.transactions import Database, is_row_problem

logger = logging.getLogger(__name__)


def record(database: Database, outcomes: Sequence[Outcome], now: datetime) -> set[UUID]:
    """Write what can be written; see `Store.record`."""
    first: dict[tuple[UUID, int], Outcome] = {}
    for outcome in outcomes:
        first.setdefault((outcome.job_id, outcome.attempt), outcome)
    prepared = [_prepare_or_fail(outcome) for outcome in first.values()]
    if not prepared:
        return set()
    try:
        return _write(database, prepared, now)
    except Exception as error:
        if not is_row_problem(error):
            raise
    # One of them is at fault, and the others must not pay for it.
    recorded: set[UUID] = set()
    for one in prepared:
        recorded |= _write_alone(database, one, now)
    return recorded


def _write_alone(database: Database, one: Prepared, now: datetime) -> set[UUID]:
    try:
        return _write(database, [one], now)
    except Exception as error:
        if not is_row_problem(error):
            raise
        return _write(database, [_prepare(_unstorable(one.outcome, error))], now)


def _prepare_or_fail(outcome: Outcome) -> Prepared:
    try:
        return _prepare(outcome)
    except (ValueError, TypeError) as error:
        return _prepare(_unstorable(outcome, error))


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
    """The rows of an outcome, checked for what not every database refuses by itself."""
    if not outcome.state.terminal:
        raise ValueError(f"{outcome.state} is no state a job ends in")
    failure, timings = outcome.failure, dict(outcome.timings)
    succeeded = outcome.state is JobState.SUCCEEDED
    captions = [caption_values(one) for one in outcome.captions] if succeeded else []
    job = {
        "job_id": str(outcome.job_id),
        "attempt": outcome.attempt,
        "state": outcome.state,
        "error_code": failure and failure.code,
        "error_message": failure and clean_message(failure.message),
        "error_retryable": failure and failure.retryable,
        "model": outcome.model and _stamp(outcome.model),
        "timings": timings,
        "event_data": {"error_code": failure and failure.code, "timings": timings},
    }
    if outcome.frames_done is not None:
        job["frames_done"] = outcome.frames_done
    key = {"job_id": job["job_id"], "attempt": outcome.attempt}
    lines = canonical_json([{**key, **caption} for caption in captions])
    return Prepared(outcome, job, captions, canonical_json(job), lines[1:-1])


@functools.lru_cache(maxsize=16)
def _stamp(model: ModelInfo) -> dict[str, Any]:
    """The same for all results of a worker; not to be changed."""
    return dataclasses.asdict(model)


def _write(database: Database, prepared: Sequence[Prepared], now: datetime) -> set[UUID]:
    if database.combines:
        with database.statement() as connection:
            return write_combined(connection, prepared, now)
    with database.transaction() as connection:
        return {one.outcome.job_id for one in prepared if write_one(connection, one, now)}

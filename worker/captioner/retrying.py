"""Whether an attempt that failed is followed by another, and when."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

from captioner.domain import ClaimedJob, JobFailure, Requeue
from captioner.settings import RetrySettings

#: More than any delay needs; a float holds a thousand.
_MOST_DOUBLINGS = 64


def retry(
    job: ClaimedJob, failure: JobFailure, settings: RetrySettings, now: datetime, *, crashed: bool
) -> Requeue | None:
    """What to put back; None: the failure is the job's end.

    A crash costs a whole engine or decoder, so crashes are counted apart, and few are allowed.

    Args:
        job: as it was claimed.
        failure: of this attempt.
        settings: how often, and after how long.
        now: the time to count from.
        crashed: a process died of this job alone.
    """
    if crashed:
        again = job.crashes + 1 < settings.max_crashes
    else:
        again = failure.retryable and job.retries < settings.max_retries
    if not again:
        return None
    return Requeue(
        job_id=job.id,
        attempt=job.attempt,
        not_before=now + _delay(job.retries, settings),
        failure=failure,
        crashed=crashed,
    )


def _delay(retries: int, settings: RetrySettings) -> timedelta:
    """Twice as long each time, less up to half: what failed together does not return together."""
    doubled = 2.0 ** min(retries, _MOST_DOUBLINGS)
    longest = min(settings.max_delay_seconds, settings.first_delay_seconds * doubled)
    return timedelta(seconds=longest * random.uniform(0.5, 1.0))  # noqa: S311 - nobody's secret

"""From requests to rows, and from rows to messages: how every submitter does it, and in that order.

Whoever dies between the two leaves a queued row without a message, which a worker's housekeeping
publishes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from captioner.celery import MAX_JOBS_PER_MESSAGE, publish
from captioner.domain import CaptionRequest, Job, Lane
from captioner.errors import (
    BrokerUnavailableError,
    DuplicateClientKeyError,
    InvalidRequestError,
    StoreUnavailableError,
)
from captioner.store import Store, Submission

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger(__name__)

Refusal = DuplicateClientKeyError | InvalidRequestError


def add_each(store: Store, requests: Sequence[CaptionRequest]) -> list[Submission | Refusal]:
    """Insert requests in one transaction, or in several around those that are refused.

    Returns:
        What became of each request, in their order.
    """
    if not requests:
        return []
    try:
        return [*store.add(requests)]
    except (DuplicateClientKeyError, InvalidRequestError) as error:
        if len(requests) == 1:
            return [error]
    middle = len(requests) // 2
    return add_each(store, requests[:middle]) + add_each(store, requests[middle:])


def dispatch(app: Celery, store: Store, jobs: Sequence[Job]) -> bool:
    """Publish jobs that were just inserted, and stamp them.

    Editors want theirs first, so interactive jobs have a message each; bulk jobs share messages.

    Returns:
        False when the broker is away: what was not published is kept and published later.
    """
    messages: list[list[UUID]] = []
    try:
        for lane in Lane:
            job_ids = [job.id for job in jobs if job.lane is lane]
            size = MAX_JOBS_PER_MESSAGE if lane is Lane.BULK else 1
            for first in range(0, len(job_ids), size):
                chunk = job_ids[first : first + size]
                publish(app, chunk, lane)
                messages.append(chunk)
    except BrokerUnavailableError as error:
        logger.warning("%s; the jobs are kept and a worker will publish them", error)
        return False
    finally:
        if messages:
            _stamp(store, messages)
    return True


def _stamp(store: Store, messages: Sequence[Sequence[UUID]]) -> None:
    """What has no stamp is published once more, and that does no harm: the jobs are there."""
    try:
        store.mark_dispatched(messages)
    except StoreUnavailableError as error:
        logger.warning("jobs were published, and may be once more: %s", error)

"""The Celery tasks: they check a message and hand it to the service."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any
from uuid import UUID

from celery import Task, shared_task

from captioner.celery import CAPTION_TASK, MAX_JOBS_PER_MESSAGE, MESSAGE_VERSION

logger = logging.getLogger(__name__)


@shared_task(name=CAPTION_TASK, bind=True, typing=False)
def caption(self: Task, *args: Any, **message: Any) -> str:
    """Caption the jobs a message names; what cannot be claimed was somebody else's.

    Returns:
        What became of them, such as `2 succeeded, 1 failed`, for Flower to show.
    """
    problem = _problem(args, message)
    if problem:
        logger.error("dropped a message: %s", problem, extra={"task_id": self.request.id})
        return f"dropped: {problem}"
    job_ids = [UUID(text) for text in message["job_ids"]]
    service = self.app.service
    states = Counter(outcome.value for outcome in service.run(list(dict.fromkeys(job_ids))))
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "not ours"


def _problem(args: tuple[Any, ...], message: dict[str, Any]) -> str | None:
    """What is wrong with a message, in words that hold nothing of its content."""
    if args or set(message) != {"v", "job_ids"}:
        return "expected the keyword arguments v and job_ids, and nothing else"
    if message["v"] != MESSAGE_VERSION or isinstance(message["v"], bool):
        return f"expected v={MESSAGE_VERSION}"
    job_ids = message["job_ids"]
    if not isinstance(job_ids, list) or not 0 < len(job_ids) <= MAX_JOBS_PER_MESSAGE:
        return f"expected job_ids to be a list of 1 to {MAX_JOBS_PER_MESSAGE}"
    if not all(_is_uuid(job_id) for job_id in job_ids):
        return "expected job_ids to be UUIDs"
    return None


def _is_uuid(value: object) -> bool:
    try:
        UUID(value)  # type: ignore[arg-type]  # whatever else it is, UUID() says so
    except (ValueError, TypeError, AttributeError):
        return False
    return True

"""The Celery tasks: they check a message and hand it to the service or the store."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from celery import Task, shared_task, signals
from celery.exceptions import Reject
from celery.worker import state as worker_state

from captioner.celery import (
    CAPTION_TASK,
    DELIVER_TASK,
    MAX_JOBS_PER_MESSAGE,
    MESSAGE_VERSION,
    SUBMIT_TASK,
)
from captioner.errors import CaptionerError, describe
from captioner.receiving import receive
from captioner.request_json import as_uuid

if TYPE_CHECKING:
    from captioner.domain import Progress
    from captioner.service import CaptionService

#: Shows what a message is about, and never what is in it.
REQUEST = "captioner.consumer:TaskRequest"
#: A submission that cannot be inserted yet goes back to its queue after this long.
STORE_RETRY_SECONDS = 1.0

logger = logging.getLogger(__name__)


@shared_task(name=CAPTION_TASK, bind=True, typing=False, Request=REQUEST)
def caption(self: Task, /, *args: Any, **message: Any) -> str:
    """Caption the jobs a message names; what cannot be claimed was somebody else's.

    Returns:
        What became of them, such as `2 succeeded, 1 failed`, for Flower to show.
    """
    problem = _problem(args, message, "job_ids")
    job_ids = [] if problem else _uuids(message["job_ids"])
    if not job_ids:
        return _dropped(self, problem or "expected job_ids to be UUIDs")
    if not self.app.service:  # told to take captions by `celery control add_consumer`
        return _dropped(self, "this worker has no model; the jobs will be published again")
    task_id = self.request.id

    def tell(progress: Progress) -> None:
        request = worker_state.requests.get(task_id)
        if request:  # gone when the worker is about to end
            request.tell_progress(progress.done, progress.total)

    states = Counter(outcome.value for outcome in self.app.service.run(job_ids, tell))
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "not ours"


@shared_task(name=SUBMIT_TASK, bind=True, typing=False, acks_late=True, Request=REQUEST)
def submit(self: Task, /, *args: Any, **message: Any) -> str:
    """Insert the requests of a producer that has no database, and publish their ids.

    Acknowledged only when the rows are committed: until then Redis has the only copy.

    Returns:
        What became of them, such as `2 new, 1 known`, for Flower to show.
    """
    problem = _problem(args, message, "requests")
    if problem:
        return _dropped(self, problem)
    try:
        counts = receive(self.app, self.app.store, message["requests"])
    except Exception as error:
        # Whatever it is: a failed task is acknowledged, and this message is all there is. One line,
        # since a database's may go on with the row, whose source is nobody's business.
        why = str(error) if isinstance(error, CaptionerError) else describe(error)
        logger.warning("a submission waits in its queue: %s", why)
        time.sleep(STORE_RETRY_SECONDS)
        raise Reject(why, requeue=True) from error
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


@shared_task(name=DELIVER_TASK, bind=True, typing=False, Request=REQUEST)
def deliver(self: Task, /, *args: Any, **message: Any) -> str:
    """Look for events and deliveries at once; they would be found soon without it."""
    if args or set(message) != {"v"} or _other_version(message["v"]):
        return _dropped(self, f"expected v={MESSAGE_VERSION}, and nothing else")
    if self.app.deliveries:
        self.app.deliveries.look_now()
    return "looked"


@signals.task_revoked.connect
def cancel_revoked(sender: Task, request: Any, **_: Any) -> None:
    """Cancel the jobs of a revoked message in SQL, or they would only be published again."""
    if sender.name != CAPTION_TASK or _problem(request.args, request.kwargs, "job_ids"):
        return
    job_ids = _uuids(request.kwargs["job_ids"])
    if not sender.app.service:
        return
    # In a thread: this is the one that takes messages, and it must not wait for a database.
    threading.Thread(target=_cancel, args=(sender.app.service, job_ids), daemon=True).start()


def _cancel(service: CaptionService, job_ids: Sequence[UUID]) -> None:
    try:
        service.cancel(job_ids)
    except CaptionerError as error:
        logger.warning("revoked jobs could not be canceled: %s", error)


def _dropped(task: Task, problem: str) -> str:
    logger.error("dropped a message: %s", problem, extra={"task_id": task.request.id})
    return f"dropped: {problem}"


def _problem(args: Any, message: dict[str, Any], field: str) -> str | None:
    """What is wrong with a message, in words that hold nothing of its content."""
    if args or set(message) != {"v", field}:
        return f"expected the keyword arguments v and {field}, and nothing else"
    if _other_version(message["v"]):
        return f"expected v={MESSAGE_VERSION}"
    items = message[field]
    if not isinstance(items, list) or not 0 < len(items) <= MAX_JOBS_PER_MESSAGE:
        return f"expected {field} to be a list of 1 to {MAX_JOBS_PER_MESSAGE}"
    return None


def _other_version(version: Any) -> bool:
    return version != MESSAGE_VERSION or isinstance(version, bool)


def _uuids(items: list[Any]) -> list[UUID]:
    """The ids, each once; none when one of them is no UUID."""
    ids = [as_uuid(item) for item in items]
    return list(dict.fromkeys(one for one in ids if one)) if all(ids) else []

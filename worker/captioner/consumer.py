"""How a worker takes Celery messages: one line for what it cannot use, and short names for Flower.

The message guard has let through only what has the right shape; here is what needs to know the
tasks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from celery import signals
from celery.worker import consumer, request
from celery.worker.control import control_command

from captioner.broker.open_queues import open_queues
from captioner.celery import shown
from captioner.errors import describe
from captioner.request_json import as_uuid

logger = logging.getLogger(__name__)


#: How late Flower hears of a task. Celery publishes after every message, which took a quarter of
#: this process's time.
EVENTS_SECONDS = 0.25
#: How long it waits before it asks a broker again that refuses what it is asked.
REFUSED_SECONDS = 1.0


class Consumer(consumer.Consumer):
    """Celery's consumer, which would log the whole message and a traceback instead."""

    _events_timer: Any = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Celery's, but deaf to other workers' events, also under `celery -A captioner worker`.

        A worker of ours has no use for them, and an event with a field of another type ends it.
        """
        super().__init__(*arguments, **(options | {"without_gossip": True}))

    def register_with_event_loop(self, hub: Any) -> None:
        """Publish the events of tasks now and then; called again after a lost connection."""
        super().register_with_event_loop(hub)
        if self._events_timer:
            self._events_timer.cancel()
        self._events_timer = hub.call_repeatedly(EVENTS_SECONDS, self._flush_events)

    def update_strategies(self) -> None:
        """Know the tasks of the application, and none of Celery's own, which come with each.

        Nothing here sends those, and whoever can write to Redis could: one message of
        `celery.group` makes thousands.
        """
        super().update_strategies()
        for name in [name for name in self.strategies if name.startswith("celery.")]:
            del self.strategies[name]

    def on_send_event_buffered(self) -> None:
        """Nothing: the timer sees to it."""

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """The broker is there and refuses, as a Redis does that is no longer the master.

        Celery would ask again at once, six times a second, and log a traceback each second.
        """
        logger.warning("the broker refuses, and is asked again: %s", describe(exc))
        time.sleep(REFUSED_SECONDS)

    def on_unknown_message(self, body: object, message: Any) -> None:  # noqa: ARG002  # Celery's
        """A message of no protocol Celery knows."""
        self._drop(message, "it is not a task")

    def on_unknown_task(self, body: object, message: Any, exc: Exception) -> None:  # noqa: ARG002  # ditto
        """A task that this worker has not got."""
        name, task_id = message.headers["task"], message.headers["id"]
        self._drop(message, f"no task has the name {name!r}", task_id=task_id)
        if self.event_dispatcher:
            self.event_dispatcher.send("task-failed", uuid=task_id, exception="NotRegistered")
        signals.task_unknown.send(sender=self, message=message, exc=exc, name=name, id=task_id)

    def on_invalid_task(self, body: object, message: Any, exc: Exception) -> None:  # noqa: ARG002  # ditto
        """A task whose headers or content type Celery refuses."""
        self._drop(message, f"Celery refuses it ({type(exc).__name__})")

    def on_decode_error(self, message: Any, exc: Exception) -> None:  # noqa: ARG002  # ditto
        """A body that cannot be read."""
        self._drop(message, "its body cannot be read")

    def _drop(self, message: Any, problem: str, **extra: str) -> None:
        queue = message.delivery_info.get("routing_key")
        size = len(message.body or b"")
        logger.error("dropped a message from %s: %s (%d bytes)", queue, problem, size, extra=extra)
        message.reject_log_error(logger, self.connection_errors)


@control_command(args=[("queue", str)], signature="<queue>")
def add_consumer(state: Any, queue: str, **_: object) -> dict[str, str]:
    """Take messages from a queue of the application: Celery's own makes any that is named.

    Its errors would come later and end the worker, and what it makes holds no work of ours.
    """
    if queue not in state.app.amqp.queues:
        return {"error": f"no queue has the name {queue!r}"}
    state.consumer.call_soon(state.consumer.add_task_queue, queue)
    return {"ok": f"add consumer {queue}"}


class TaskRequest(request.Request):
    """One message in this worker, as logs, `inspect` and Flower see it.

    What a producer says of its own arguments is not shown: sources hold tokens, and pictures.
    """

    #: True once Flower was told how far it is.
    _progressed = False

    def __init__(self, message: Any, **options: Any) -> None:
        """See Celery's own."""
        super().__init__(message, **options)
        self._argsrepr, self._kwargsrepr = "()", shown(_ids(self._kwargs))
        open_queues.take(self)

    def info(self, safe: bool = False) -> dict[str, Any]:  # noqa: ARG002, FBT001, FBT002  # Celery's
        """What `inspect` tells; the arguments never as they are."""
        told: dict[str, Any] = super().info(safe=True)
        return told

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002  # Celery's
        """Tell Flower; a revoked task stays revoked, though its thread ends like any other.

        Unless it told of progress: for Celery no task in a state of its own is ever revoked, and it
        would seem to go on.
        """
        revoked = self._already_revoked and not self._progressed
        if not (revoked and type == "task-succeeded"):
            super().send_event(type, **fields)

    def tell_progress(self, done: int, total: int | None) -> None:
        """Have Flower show how far a video is: as its result, for lack of a better place."""
        self._progressed = True
        far = f"{done} frames" if total is None else f"{done} of {total} frames"
        self.send_event("task-progress", frames_done=done, frames_total=total, result=far)


def _ids(message: Mapping[str, Any]) -> list[UUID]:
    """The ids of the jobs a message names, however malformed the rest of it."""
    named = message.get("job_ids")
    if isinstance(requests := message.get("requests"), list):
        named = [one.get("id") for one in requests if isinstance(one, dict)]
    ids = map(as_uuid, named) if isinstance(named, list) else ()
    return [one for one in ids if one]

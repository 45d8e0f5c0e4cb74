"""The yardstick: stock Celery and a task that does nothing. A program of its own.

Nothing of captioner's transport, pool or consumer is loaded here.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from celery import Celery
from celery.worker.control import inspect_command

from captioner.settings import Settings, load_settings

TASK = "noop"
QUEUE = "noop"
#: When each task ran; appending is all that a task does.
_ran: list[float] = []


def noop() -> None:
    """Do nothing, and note when."""
    _ran.append(time.time())


@inspect_command()
def noop_times(_state: Any, skip: int) -> list[float]:
    """How many tasks have run after the first `skip`, and when the first and the last of them."""
    ran = _ran[skip:]
    return [len(ran), *ran[:1], *ran[-1:]]


def create_app(settings: Settings) -> Celery:
    """Celery with its defaults on the Redis of these settings, and with their key prefix."""
    app = Celery("noop", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        broker_transport_options={"global_keyprefix": settings.broker.key_prefix},
        broker_connection_retry_on_startup=True,
        task_default_queue=QUEUE,
        task_ignore_result=True,
    )
    app.task(name=TASK)(noop)
    return app


def main(hostname: str, concurrency: str) -> None:
    """Run a worker until it is told to stop."""
    create_app(load_settings()).worker_main(
        [
            *("worker", "--without-gossip", "--without-mingle", "--hostname", hostname),
            *("--pool", "threads", "--concurrency", concurrency),
        ]
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

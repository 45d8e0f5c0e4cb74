"""The Celery application, and the one function that sends a job's message.

`celery -A captioner worker` finds `app` here by Celery's own convention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import celery
from celery import signals
from kombu.clocks import LamportClock
from kombu.entity import Exchange, Queue
from kombu.exceptions import KombuError
from kombu.exceptions import OperationalError as BrokerError

from captioner.broker.embedded import prepare_embedded_broker
from captioner.broker.options import broker_options
from captioner.domain import Lane
from captioner.errors import BrokerUnavailableError, SettingsError
from captioner.logs import configure_logging
from captioner.queues import ALL_QUEUES, EVENTS_QUEUE, QUEUES, SUBMISSIONS_QUEUE
from captioner.settings import Settings, load_settings

if TYPE_CHECKING:
    from captioner.delivering import DeliveryService
    from captioner.service import CaptionService
    from captioner.store import Store

CAPTION_TASK = "captioner.caption"
SUBMIT_TASK = "captioner.submit"
DELIVER_TASK = "captioner.deliver"
MESSAGE_VERSION = 1
#: Most job ids of one message: bulk work pays Celery's price per message once for all of them.
MAX_JOBS_PER_MESSAGE = 64
#: What no clock comes to by counting messages: a million of them a second for nine years.
FAR_AHEAD = 2**48


class Clock(LamportClock):
    """Celery's count of messages, which cannot be set so far ahead that it is of no more use.

    Every command, reply and event brings a clock, and whoever gets it goes on from there. One with
    the largest number would make every later one of ours a number that nobody accepts.
    """

    def adjust(self, other: int) -> int:
        """Go on from another's clock."""
        value: int = super().adjust(other) if other < FAR_AHEAD else self.forward()
        return value


class CaptionerApp(celery.Celery):
    """A Celery application that knows captioner's settings and, in a worker, what tasks need."""

    settings: Settings
    #: Set by the pool once the model is loaded; None in producers.
    service: CaptionService | None = None
    #: Set by the pool of a worker that delivers events.
    deliveries: DeliveryService | None = None
    #: The database and this worker's id there, set by the pool.
    store: Store | None = None


def create_app(settings: Settings) -> CaptionerApp:
    """Make a Celery application for these settings; nothing is connected yet."""
    prepare_embedded_broker(settings.broker_url)
    app = CaptionerApp("captioner", set_as_current=False)
    app.settings = settings
    app.clock = Clock()
    app.conf.update(_configuration(settings))
    return app


def _configuration(settings: Settings) -> dict[str, Any]:
    # Elsewhere kombu counts what waits for its acknowledgement, and takes no more than may be.
    is_redis = settings.broker_url.startswith(("redis", "sentinel"))
    return {
        "broker_url": settings.broker_url,
        "broker_transport_options": broker_options(settings),
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # Also when Redis answers with an error, as it does when it is no longer the master.
        "broker_channel_error_retry": True,
        "imports": ["captioner.tasks"],
        # The pool owns the model: see captioner.pool.
        "worker_pool": "captioner.pool:TaskPool",
        "worker_consumer": "captioner.consumer:Consumer",
        "worker_concurrency": settings.concurrency,
        "worker_prefetch_multiplier": 1,
        # Only what runs is taken, so the length of the queue is the true backlog.
        "worker_disable_prefetch": is_redis,
        # Claims are in SQL: late acknowledgement would add only duplicates.
        "task_acks_late": False,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        # An exchange each: Celery would bind those that name none to the default queue's.
        "task_queues": [
            Queue(
                name,
                Exchange(name),
                routing_key=name,
                # What is lost on the way from Redis is published again from SQL, but for requests,
                # which are not there yet. Keeping a copy until a thread has begun would take two
                # round trips a message, a quarter of the time of the thread that takes them.
                no_ack=is_redis and name != SUBMISSIONS_QUEUE,
            )
            for name in ALL_QUEUES
        ],
        "task_default_queue": QUEUES[Lane.INTERACTIVE],
        # A typing error in a queue's name fails at once instead of being published to nobody.
        "task_create_missing_queues": False,
        "task_publish_retry_policy": {"max_retries": 3, "interval_start": 0, "interval_max": 1},
        # What Flower shows.
        "worker_send_task_events": True,
        "task_send_sent_event": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        # Threads cannot be canceled.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # A second delivery costs one statement: nothing to be careful about after a reconnection.
        "worker_enable_prefetch_count_reduction": False,
        "enable_utc": True,
    }


def publish(app: celery.Celery, job_ids: Sequence[UUID], lane: Lane) -> None:
    """Send one message for these jobs, whose rows are committed.

    Raises:
        BrokerUnavailableError: the broker did not take it; the rows stay `queued` and a worker's
            housekeeping publishes them later.
    """
    try:
        app.send_task(
            CAPTION_TASK,
            kwargs={"v": MESSAGE_VERSION, "job_ids": [str(job_id) for job_id in job_ids]},
            queue=QUEUES[lane],
            argsrepr="()",
            kwargsrepr=shown(job_ids),
            ignore_result=True,
        )
    except (BrokerError, KombuError, OSError) as error:
        raise BrokerUnavailableError.because_of(error) from error


def publish_look(app: celery.Celery) -> bool:
    """Have a worker look for deliveries at once; False when the broker did not take the message.

    It would find them by itself, half a second later.
    """
    try:
        app.send_task(
            DELIVER_TASK,
            kwargs={"v": MESSAGE_VERSION},
            queue=EVENTS_QUEUE,
            argsrepr="()",
            kwargsrepr="look now",
            ignore_result=True,
            retry=False,
        )
    except (BrokerError, KombuError, OSError):
        return False
    return True


def shown(job_ids: Sequence[UUID]) -> str:
    """A message's arguments as logs and Flower show them: what tells it from others, no more."""
    more = f" and {len(job_ids) - 1} more" if len(job_ids) > 1 else ""
    return f"{job_ids[0]}{more}" if job_ids else "no jobs"


def run_worker(settings: Settings) -> int:
    """Run a worker in this process until it is told to stop; returns its exit code."""
    from celery.bin.celery import celery as command

    worker = settings.worker
    configure_logging(settings.log)  # Celery warns before it asks for logs
    # `worker_main` would do, but it forgets the exit code. Quiet: our own lines say what matters.
    code = command.main(
        args=[
            *("-A", "captioner", "--quiet", "worker", "--without-gossip", "--without-mingle"),
            *("--hostname", worker.name, "--queues", settings.queues),
        ],
        standalone_mode=False,
    )
    return int(code or 0)


@signals.setup_logging.connect
def _use_our_logs(**_: Any) -> None:
    """A receiver of this signal keeps Celery from setting up logs of its own."""
    configure_logging(load_settings().log)


def __getattr__(name: str) -> CaptionerApp:
    """Make `app` when it is asked for, so that importing this module reads no environment."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        app = create_app(load_settings())
    except (SettingsError, BrokerUnavailableError) as error:
        raise SystemExit(f"captioner: {error}") from None
    app.set_current()
    globals()["app"] = app
    return app

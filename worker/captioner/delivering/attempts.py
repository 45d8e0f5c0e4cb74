"""One attempt of one delivery: the plugin's hook called, and what that means for the next one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from captioner.deliveries import AttemptEnd, Delivery, NewDelivery
from captioner.delivering.answers import checked_error, checked_receipt
from captioner.delivering.asking import HOOK as ASK
from captioner.delivering.asking import ask_targets
from captioner.delivering.schedule import pause_seconds
from captioner.domain import Job
from captioner.errors import DeliveryError, describe
from captioner.events import DeliveryState
from captioner.logs import job_context
from captioner.plugins import Plugins
from captioner.store import Store

DELIVER = "deliver_event"


@dataclass(frozen=True, slots=True)
class Started:
    """When an attempt began."""

    at: datetime
    clock: float

    @property
    def seconds(self) -> float:
        """How long ago that is."""
        return round(time.monotonic() - self.clock, 6)


class Attempts:
    """Makes attempts, and judges how they ended. Thread-safe."""

    def __init__(self, store: Store, plugins: Plugins, delays_seconds: Sequence[float]) -> None:
        """`delays_seconds` are the pauses after each failed attempt."""
        self._store = store
        self._plugins = plugins
        self._delays_seconds = delays_seconds

    def start(self, seconds_ago: float = 0.0) -> Started:
        """An attempt that begins now, or began a while ago."""
        return Started(
            self._store.now() - timedelta(seconds=seconds_ago), time.monotonic() - seconds_ago
        )

    def make(self, delivery: Delivery, jobs: Mapping[UUID, Job]) -> AttemptEnd:
        """Make one attempt, in the caller's thread; whatever the plugin does becomes its end.

        Args:
            delivery: claimed; one without a target asks the plugin for its targets.
            jobs: the delivery's own among them, unless this version cannot read it.
        """
        started = self.start()
        with job_context(delivery.event.job_id):
            try:
                return self._made(delivery, jobs.get(delivery.event.job_id), started)
            except BaseException as error:  # noqa: BLE001  # a plugin may fail in any way
                self._plugins.errors.report(delivery.plugin, hook_of(delivery), error)
                return self.failed(delivery, started, DeliveryError(describe(error)))

    def failed(
        self, delivery: Delivery, started: Started, error: DeliveryError, *, apart: bool = False
    ) -> AttemptEnd:
        """The end of an attempt that failed: tried again as scheduled, or dead.

        Args:
            delivery: as it was claimed.
            started: when the attempt began.
            error: checked, where it is a plugin's own.
            apart: whether it is to be made in a process of its own then.
        """
        pause = None
        if not error.permanent:
            pause = pause_seconds(
                delivery.attempts + 1, self._delays_seconds, error.retry_after_seconds
            )
        return AttemptEnd(
            delivery=delivery,
            started_at=started.at,
            duration_seconds=started.seconds,
            state=DeliveryState.DEAD if pause is None else DeliveryState.PENDING,
            due_at=self._store.now() + timedelta(seconds=pause or 0.0),
            status=error.status,
            # Half a pair of surrogates can be neither logged nor stored.
            error=str(error).encode(errors="replace").decode(),
            excerpt=error.excerpt,
            apart=apart,
        )

    def _made(self, delivery: Delivery, job: Job | None, started: Started) -> AttemptEnd:
        """Raises what is the plugin's fault."""
        if job is None:
            unreadable = DeliveryError("this version of captioner cannot read the job")
            return self.failed(delivery, started, unreadable)
        try:
            if delivery.target is None:
                return self._ask(delivery, job, started)
            return self._deliver(delivery, delivery.target, job, started)
        except DeliveryError as error:
            return self.failed(delivery, started, checked_error(error))

    def _deliver(self, delivery: Delivery, target: str, job: Job, started: Started) -> AttemptEnd:
        receipt: object = self._plugins.call(
            delivery.plugin,
            DELIVER,
            event=delivery.event,
            job=job,
            target=target,
            store=self._store,
        )
        receipt = checked_receipt(receipt)
        return AttemptEnd(
            delivery=delivery,
            started_at=started.at,
            duration_seconds=started.seconds,
            state=DeliveryState.DELIVERED,
            due_at=delivery.due_at,
            status=receipt.status,
            excerpt=receipt.excerpt,
        )

    def _ask(self, delivery: Delivery, job: Job, started: Started) -> AttemptEnd:
        targets = ask_targets(self._plugins, delivery.plugin, delivery.event, job, self._store)
        now = self._store.now()
        return AttemptEnd(
            delivery=delivery,
            started_at=started.at,
            duration_seconds=started.seconds,
            state=DeliveryState.DELIVERED,
            due_at=delivery.due_at,
            targets=tuple(
                NewDelivery(plugin=delivery.plugin, target=target, due_at=now) for target in targets
            ),
        )


def hook_of(delivery: Delivery) -> str:
    """The hook that an attempt of it calls."""
    return ASK if delivery.target is None else DELIVER

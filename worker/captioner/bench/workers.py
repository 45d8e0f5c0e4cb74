"""The two workers that take turns: how each is given its work, and watched."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import redis
from celery import Celery
from sqlalchemy import Engine

from captioner import celery as captioner_celery
from captioner.bench import noop, remote, tables
from captioner.bench.backlog import Queue, filling
from captioner.bench.plan import CHUNK, Round, Side
from captioner.bench.processes import WorkerProcess
from captioner.domain import CaptionRequest, Lane
from captioner.errors import CaptionerError
from captioner.queues import QUEUES
from captioner.settings import Settings
from captioner.source import Source
from captioner.store import Store

#: A worker that has to load a real model takes its time.
START_SECONDS = 900.0
#: A round in which nothing happens for so long has failed.
STALL_SECONDS = 120.0
#: How often it is asked whether a round is over.
POLL_SECONDS = 0.1
#: Jobs inserted and published together. All at once would take so long that the worker's sweeper
#: found them without a message, and they were done before the queue was opened.
PORTION = 16 * CHUNK


class Ran(NamedTuple):
    """How far a round has come."""

    jobs: int
    #: From the first begin to the last end so far.
    seconds: float


class RunningWorker:
    """A worker process that answers."""

    def __init__(self, process: WorkerProcess, app: Celery, hostname: str) -> None:
        """`app` reaches the worker, and `hostname` is its name there."""
        self._process = process
        self._app = app
        self._hostname = hostname

    def wait_until_ready(self) -> None:
        """Return when it answers.

        Raises:
            CaptionerError: it has ended, or does not answer.
        """
        give_up = time.monotonic() + START_SECONDS
        while not self.ask("ping", timeout_seconds=1.0):
            self._process.check()
            if time.monotonic() > give_up:
                raise CaptionerError(f"a worker does not answer; its log is {self._process.log}")

    def ask(self, command: str, **arguments: Any) -> Any:
        """What the worker answers to a remote-control command; None when it does not."""
        return remote.ask(self._app, self._hostname, command, **arguments)

    def check(self) -> None:
        """Raise `CaptionerError` when it has ended."""
        self._process.check()

    def engine(self) -> dict[str, Any]:
        """What its engine has done so far; see `EngineStats`."""
        stats: dict[str, Any] = self.ask(remote.engine_stats.__name__)
        return stats


class Worker(RunningWorker, ABC):
    """One that can be given the same work again and again."""

    def __init__(
        self, process: WorkerProcess, settings: Settings, app: Celery, hostname: str
    ) -> None:
        """See `RunningWorker`; `settings` are the worker's."""
        super().__init__(process, app, hostname)
        self._settings = settings
        self._redis: redis.Redis = redis.Redis.from_url(settings.broker_url)

    def run(self, side: Side, jobs: int) -> Round:
        """Fill its queue, then let it work until the last job has ended.

        Raises:
            CaptionerError: not all of them succeeded, or nothing happens any more.
        """
        queue = Queue(self._redis, self._settings, self._publish(side, jobs))
        engine_before, cpu_before = self.engine(), self._process.cpu_seconds
        queue.open()
        ran = self._wait(queue, jobs)
        cpu_seconds = self._process.cpu_seconds - cpu_before
        grown = {name: value - engine_before[name] for name, value in self.engine().items()}
        return Round(
            jobs=jobs,
            seconds=ran.seconds,
            cpu_seconds=cpu_seconds,
            resident_bytes=self._process.resident_bytes,
            **{name: grown[name] for name in grown if name != "restarts"},
        )

    def _wait(self, queue: Queue, jobs: int) -> Ran:
        seen, moved_at = (-1, -1), time.monotonic()
        while True:
            time.sleep(POLL_SECONDS)
            waiting = len(queue)
            # Asked for only towards the end: what is measured must not pay for being watched.
            ran = self._ran(jobs) if not waiting else Ran(0, 0.0)
            if ran.jobs == jobs:
                return ran
            self._process.check()
            if (waiting, ran.jobs) != seen:
                seen, moved_at = (waiting, ran.jobs), time.monotonic()
            elif time.monotonic() - moved_at > STALL_SECONDS:
                raise CaptionerError(
                    f"nothing has happened for {STALL_SECONDS:.0f} s: {waiting} messages wait, "
                    f"{ran.jobs} of {jobs} jobs have ended; the log is {self._process.log}"
                )

    @abstractmethod
    def _publish(self, side: Side, jobs: int) -> str:
        """Publish work where the worker does not see it yet; the name of its queue."""

    @abstractmethod
    def _ran(self, jobs: int) -> Ran:
        """How far the round has come."""


class NoopWorker(Worker):
    """Stock Celery, whose task does nothing."""

    def __init__(self, process: WorkerProcess, settings: Settings, hostname: str) -> None:
        """See `running_noop`."""
        super().__init__(process, settings, noop.create_app(settings), hostname)
        self._filling = noop.create_app(filling(settings))
        self._before = 0

    def _publish(self, side: Side, jobs: int) -> str:  # noqa: ARG002  # there is one kind
        (self._before, *_) = self.ask(noop.noop_times.__name__, skip=0)
        for _ in range(jobs):
            self._filling.send_task(noop.TASK, queue=noop.QUEUE)
        return noop.QUEUE

    def _ran(self, jobs: int) -> Ran:  # noqa: ARG002
        count, *times = self.ask(noop.noop_times.__name__, skip=self._before)
        return Ran(int(count), times[-1] - times[0] if times else 0.0)

    def engine(self) -> dict[str, Any]:
        """Nothing: it has none."""
        return {}


class CaptionWorker(Worker):
    """`captioner worker`, on its own tables."""

    def __init__(
        self,
        process: WorkerProcess,
        settings: Settings,
        hostname: str,
        engine: Engine,
        source: Path,
    ) -> None:
        """`source` is what every job is of."""
        super().__init__(process, settings, captioner_celery.create_app(settings), hostname)
        self._filling = captioner_celery.create_app(filling(settings))
        self._engine_of_tables = engine
        self._store = Store(engine)
        self._source = Source(str(source))
        self._since = datetime.now(UTC)

    def _publish(self, side: Side, jobs: int) -> str:
        lane, size = (Lane.BULK, CHUNK) if side is Side.CHUNKED else (Lane.INTERACTIVE, 1)
        self._since = datetime.now(UTC)
        for first in range(0, jobs, PORTION):
            requests = [
                CaptionRequest(source=self._source, lane=lane)
                for _ in range(min(PORTION, jobs - first))
            ]
            ids = [submission.job.id for submission in self._store.add(requests)]
            messages = [ids[start : start + size] for start in range(0, len(ids), size)]
            for message in messages:
                captioner_celery.publish(self._filling, message, lane)
            self._store.mark_dispatched(messages)
        return QUEUES[lane]

    def _ran(self, jobs: int) -> Ran:
        unfinished = tables.unfinished(self._engine_of_tables)
        if unfinished:
            return Ran(jobs - unfinished, 0.0)
        ended = tables.ended(self._engine_of_tables, self._since)
        if ended.succeeded != jobs:
            raise CaptionerError(
                f"{ended.succeeded} of {jobs} jobs succeeded; the log is {self._process.log}"
            )
        return Ran(jobs, ended.seconds)

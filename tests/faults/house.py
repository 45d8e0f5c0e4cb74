"""A whole installation to break: Redis, a database, workers with a model that can be broken."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from PIL import Image
from redis import Redis
from sqlalchemy import Engine, create_engine, false, func, select, update

from captioner.celery import publish
from captioner.domain import CaptionRequest, JobState, Lane
from captioner.jobs import Jobs
from captioner.queues import QUEUES
from captioner.source import Source
from captioner.store import upgrade
from captioner.store.models import CaptionRow, EventRow, JobRow, WorkerRow
from distributions import install
from processes import Worker, environment, running_worker, settings_of, wait_until
from servers import RedisServer

#: What a worker is told: an engine that breaks by colour, decoders that break by file or are slow,
#: or that do not start while there is a file, videos that go on until there is a file `release`
#: beside them, sockets that wait only so long.
FAULTY_PLUGIN = """
import os, signal, socket, sys, time
from pathlib import Path
import numpy as np
from captioner import Frame, hookimpl
from captioner.testing import load_faulty_model

if seconds := os.environ.get("FAULTY_SOCKET_SECONDS"):
    socket.setdefaulttimeout(float(seconds))

if "captioner decoder" in sys.argv and Path(os.environ.get("FAULTY_DECODERS", "none")).exists():
    os._exit(9)

@hookimpl
def provide_captioner(settings):
    if os.environ.get("FAULTY_LOAD"):
        raise OSError("the disk is on fire")
    notes = os.environ.get("FAULTY_NOTES")
    seconds = float(os.environ["FAULTY_SECONDS"])
    size = int(os.environ.get("FAULTY_SIZE", "32"))
    return load_faulty_model(size, seconds_per_batch=seconds, notes=notes and Path(notes))

def held(path, size):
    while not path.with_name("release").exists():
        time.sleep(0.05)
    yield Frame(np.full((size, size, 3), 7, np.uint8), 0.0)

@hookimpl
def sample_frames(media, image_size):
    time.sleep(float(os.environ.get("FAULTY_DECODE_SECONDS", "0")))
    with media.path.open("rb") as file:
        file.seek(-min(32, media.path.stat().st_size), os.SEEK_END)
        end = file.read()
    if end.endswith(b"segmentation fault"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if end.endswith(b"held"):
        return held(media.path, image_size)
"""
RED, GREEN, BLUE, MAGENTA = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255)


@dataclass
class House:
    """One installation; its parts can be stopped, killed and emptied."""

    folder: Path
    redis: RedisServer
    env: dict[str, str]
    jobs: Jobs
    database: Engine
    #: What runs its workers.
    within: Sequence[str] = ()

    @contextmanager
    def worker(self, **settings: str) -> Iterator[Worker]:
        """A worker process; `settings` change its environment."""
        with running_worker(self.folder, self._with(settings), within=self.within) as worker:
            yield worker

    @contextmanager
    def starting_worker(self, **settings: str) -> Iterator[Worker]:
        """The same, without waiting until it is ready."""
        with running_worker(self.folder, self._with(settings), ready=False) as worker:
            yield worker

    def _with(self, settings: Mapping[str, str]) -> dict[str, str]:
        return self.env | {
            name if name.startswith("FAULTY_") else f"CAPTIONER_{name}": value
            for name, value in settings.items()
        }

    def publish_again(self, job_id: UUID) -> None:
        """One more message for a job."""
        publish(self.jobs._app, [job_id], Lane.INTERACTIVE)

    def messages(self) -> int:
        """Messages that wait for workers, of all queues."""
        with Redis.from_url(self.env["CAPTIONER_BROKER__URL"]) as client:
            return sum(client.llen(f"captioner:{queue}") for queue in QUEUES.values())

    def picture(self, colour: tuple[int, int, int], name: str = "") -> Path:
        """A file of one colour."""
        path = self.folder / f"{name or '-'.join(map(str, colour))}.png"
        Image.new("RGB", (32, 32), colour).save(path)
        return path

    def innocents(self, count: int) -> list[CaptionRequest]:
        """Requests that succeed when nothing breaks, each with a caption of its own."""
        return [
            self.request(self.picture((level % 190, level // 190, 7))) for level in range(count)
        ]

    def request(self, path: Path, lane: Lane = Lane.INTERACTIVE) -> CaptionRequest:
        """A request for a file."""
        return CaptionRequest(source=Source(str(path)), lane=lane)

    def count(self, state: JobState) -> int:
        """Jobs in a state."""
        return self.jobs.count_by_state()[state]

    def wait_until_busy(self) -> None:
        """Until some are done and some are in hand."""
        wait_until(lambda: self.count(JobState.SUCCEEDED) > 0 < self.count(JobState.PROCESSING))

    def wait_for_more(self) -> None:
        """Until one more has succeeded."""
        before = self.count(JobState.SUCCEEDED)
        wait_until(lambda: self.count(JobState.SUCCEEDED) > before)

    def wait_until_done(self, seconds: float = 90) -> None:
        """Until every job has ended."""

        def done() -> bool:
            # One snapshot: a job may go back to the queue between two.
            counts = self.jobs.count_by_state()
            return not counts[JobState.QUEUED] + counts[JobState.PROCESSING]

        wait_until(done, seconds)

    def let_pass(self, minutes: float) -> None:
        """Make what has happened to unfinished jobs look so much older."""
        with self.database.begin() as connection:
            # Locked in the order in which a worker would, or each might wait for the other.
            rows = connection.execute(
                select(JobRow.id, JobRow.created_at, JobRow.dispatched_at)
                .where(JobRow.state == JobState.QUEUED)
                .order_by(JobRow.id)
                .with_for_update()
            ).all()
            ago = timedelta(minutes=minutes)
            for row in rows:
                connection.execute(
                    update(JobRow)
                    .where(JobRow.id == row.id)
                    .values(
                        created_at=row.created_at - ago,
                        dispatched_at=row.dispatched_at and row.dispatched_at - ago,
                    )
                )

    def freeze(self, worker: Worker) -> None:
        """Stop a worker's process, at a moment when it does not write.

        SQLite has one writer: stopped within its transaction, it would keep everybody out.
        """
        with self.database.begin() as connection:
            connection.execute(update(JobRow).where(false()).values(attempt=0))  # the lock is ours
            os.kill(worker.process.pid, signal.SIGSTOP)

    def pause(self, worker: Worker, seconds: float, *, decoders_alone: bool) -> None:
        """Stop its processes for so long: all, as `docker pause` does, or as a drive that is away.

        What a decoder reads may be far away; it does nothing then, as if it were stopped.
        """
        pid = worker.process.pid
        stopped = children(pid, "decoder" if decoders_alone else "")
        if not decoders_alone:
            self.freeze(worker)
        for child in stopped:
            os.kill(child, signal.SIGSTOP)
        time.sleep(seconds)
        for one in [pid, *stopped]:
            with suppress(ProcessLookupError):  # given up, and replaced
                os.kill(one, signal.SIGCONT)

    def workers(self) -> int:
        """Workers that SQL knows of."""
        with self.database.connect() as connection:
            return connection.scalar(select(func.count()).select_from(WorkerRow)) or 0


@dataclass(frozen=True)
class Ledger:
    """What became of every job, read from the tables alone."""

    states: dict[UUID, JobState]
    attempts: dict[UUID, int]
    codes: dict[UUID, str | None]
    #: Of the last attempt that ended badly.
    messages: dict[UUID, str | None]
    captions: dict[UUID, list[str]]
    events: Counter[UUID]

    @classmethod
    def read(cls, database: Engine) -> Ledger:
        """All of it, in one snapshot."""
        with database.begin() as connection:
            jobs = connection.execute(
                select(
                    JobRow.id,
                    JobRow.state,
                    JobRow.attempt,
                    JobRow.error_code,
                    JobRow.error_message,
                )
            ).all()
            captions: dict[UUID, list[str]] = {job.id: [] for job in jobs}
            for row in connection.execute(select(CaptionRow.job_id, CaptionRow.text)):
                captions[row.job_id].append(row.text)
            events = Counter(connection.scalars(select(EventRow.job_id)))
        return cls(
            states={job.id: job.state for job in jobs},
            attempts={job.id: job.attempt for job in jobs},
            codes={job.id: job.error_code for job in jobs},
            messages={job.id: job.error_message for job in jobs},
            captions=captions,
            events=events,
        )

    def check(self, requests: list[CaptionRequest], fault: str, started: float) -> None:
        """The invariant: every job is there, ended once, told of once, with its own caption."""
        by_state = Counter(self.states.values())
        line = ", ".join(f"{count} {state}" for state, count in sorted(by_state.items()))
        print(
            f"\nledger of {fault}: {len(requests)} submitted = {line}; "
            f"{self.events.total()} events; at most {max(self.attempts.values())} attempts; "
            f"{time.monotonic() - started:.1f} s"
        )
        for job_id, state in self.states.items():
            if state is not JobState.SUCCEEDED:
                why = f"{self.codes[job_id]}: {self.messages[job_id]}"
                print(f"{state} at attempt {self.attempts[job_id]}, {why}")
        assert set(self.states) == {request.id for request in requests}, "lost or made up"
        assert all(state.terminal for state in self.states.values()), "not ended"
        assert self.events == Counter(dict.fromkeys(self.states, 1)), "not one event each"
        for request in requests:
            succeeded = self.states[request.id] is JobState.SUCCEEDED
            assert len(self.captions[request.id]) == succeeded, "not one caption each"
            if succeeded:
                words = Path(request.source.path).stem.replace("-", " ")
                assert self.captions[request.id] == [f"mean colour {words}"]

    def succeeded(self) -> int:
        """How many did."""
        return sum(state is JobState.SUCCEEDED for state in self.states.values())


@contextmanager
def open_house(folder: Path, redis: RedisServer, database_url: str) -> Iterator[House]:
    """Everything but a worker."""
    plugins = folder / "plugins"
    plugins.mkdir()
    install(plugins, "faulty", FAULTY_PLUGIN)
    upgrade(database_url)
    env = environment(
        folder,
        BROKER__URL=redis.new_database(),
        DATABASE__URL=database_url,
        ENGINE__MAX_BATCH="8",
        ENGINE__HANG_SECONDS="3",
        MEDIA__DECODERS="2",
        WORKER__CONCURRENCY="16",
        WORKER__HEARTBEAT_SECONDS="0.5",
        WORKER__LEASE_SECONDS="3",
        BROKER__SOCKET_TIMEOUT_SECONDS="3",
        RETRY__FIRST_DELAY_SECONDS="0.2",
        RETRY__MAX_RETRIES="2",
        LOG__FORMAT="json",
    )
    env |= {"PYTHONPATH": str(plugins), "FAULTY_SECONDS": "0.05"}
    database = create_engine(database_url)
    with Jobs(settings_of(env)) as jobs:
        try:
            yield House(folder, redis, env, jobs, database)
        finally:
            database.dispose()


def lives(pid: int) -> bool:
    """Whether a process runs."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return status != "Z"


def children(pid: int, kind: str = "") -> list[int]:
    """Processes below this one, perhaps only those of a kind: `engine`, `decoder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == pid and f"captioner {kind}".encode() in command:
                found.append(int(entry.name))
    return found


def kill(pid: int) -> None:
    """Without warning."""
    os.kill(pid, 9)

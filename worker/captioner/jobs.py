"""Submit, look up, wait for and cancel jobs, on the same database and broker as the workers.

The door for a site's own Python code; it needs neither torch nor Pillow:

    from captioner import jobs

    job = jobs.submit("https://cms.example/cat.jpg", client_key="image:17")
    job = jobs.wait(job.id, timeout_seconds=60)
    print(job.caption)

`submit`, `get`, `wait` and `cancel` use the settings of the environment; a `Jobs` can do more, and
takes others.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from uuid import UUID

from captioner.celery import CaptionerApp
from captioner.connections import Connections
from captioner.domain import CaptionRequest, Job, JobState, Lane
from captioner.errors import InvalidRequestError, JobNotFoundError
from captioner.options import GenerationOptions, VideoOptions
from captioner.request_json import alt_text_from, lane_of, options_from, video_from
from captioner.settings import Settings, load_settings
from captioner.source import Source
from captioner.store import Cursor, Store, Submission
from captioner.submitting import Refusal, add_each, dispatch

#: `wait` asks the database this often at first, and at last.
FIRST_PAUSE_SECONDS = 0.02
LAST_PAUSE_SECONDS = 1.0
#: Jobs looked up by one statement.
LOOKUP_CHUNK = 500
#: Rows that `submit_each` inserts in one transaction: eight full messages.
SUBMIT_CHUNK = 512

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Jobs(AbstractContextManager["Jobs"]):
    """A connection to the database and the broker of one installation; safe to share by threads.

    And by the children of a process that forks, as servers do that load a site before that.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Connect as `settings` say, or as the environment does.

        Raises:
            SettingsError: a setting cannot be used.
            SchemaError: the database is not of this version.
            StoreUnavailableError: the database cannot be reached.
        """
        self.settings = settings or load_settings()
        self._connections = Connections(self.settings)

    @property
    def _store(self) -> Store:
        return self._connections.opened().store

    @property
    def _app(self) -> CaptionerApp:
        return self._connections.opened().app

    def close(self) -> None:
        """Give the connections back."""
        self._connections.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def submit(
        self,
        source: str | os.PathLike[str],
        *,
        prompt: str | None = None,
        options: Mapping[str, Any] | GenerationOptions | None = None,
        video: Mapping[str, Any] | VideoOptions | None = None,
        client_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        lane: Lane | None = None,
        deadline_at: datetime | None = None,
        webhook_url: str | None = None,
    ) -> Job:
        """Submit one job and return at once.

        From the moment this returns the job is not lost, whatever happens to the broker. With a
        `client_key` that was used before for the same request, the earlier job is returned.

        Args:
            source: `https://…`, `http://…`, `file:///…`, an absolute path the workers can read,
                or `data:…` up to 256 KiB.
            prompt: text the caption starts with.
            options: `GenerationOptions`, or some of them by name, among which `alt_text` may be
                `{"max_characters": 125, "decorative": False}`.
            video: `VideoOptions`, or some of them by name, such as
                `{"strategy": "interval", "interval_seconds": 10}`; they may be in `options`, too.
            client_key: your own key of at most 255 characters.
            metadata: anything JSON can hold; echoed in results.
            lane: `bulk` lets interactive jobs overtake; by default it is `video` for what has video
                options, or the suffix or media type of a video, else `interactive`.
            deadline_at: with a time zone; the job expires if it has not ended by then.
            webhook_url: who is told how the job ended, by a signed webhook.

        Raises:
            InvalidRequestError: the request cannot be used.
            DuplicateClientKeyError: the key belongs to a different request.
            StoreUnavailableError: the database cannot be reached; nothing is submitted.
        """
        if isinstance(options, GenerationOptions):
            options = options.as_mapping()
        _check_kind("options", options, Mapping)
        _check_kind("metadata", metadata, Mapping)
        _check_kind("client_key", client_key, str)
        options = {str(name): value for name, value in (options or {}).items()}
        if video is None:
            video = video_from(options, {})
        elif not isinstance(video, VideoOptions):
            video = VideoOptions.from_mapping(video)
        defaults = self.settings.generation.model_dump()
        found = Source(os.fspath(source) if isinstance(source, os.PathLike) else source)
        request = CaptionRequest(
            source=found,
            options=options_from(options, prompt, defaults),
            alt_text=alt_text_from(options, defaults),
            video=video,
            client_key=client_key,
            metadata=metadata or {},
            lane=lane_of(found, video, Lane.INTERACTIVE) if lane is None else _lane(lane),
            deadline_at=deadline_at,
            webhook_url=webhook_url,
        )
        return self.submit_all([request])[0].job

    def submit_all(self, requests: Iterable[CaptionRequest]) -> list[Submission]:
        """Submit many jobs: rows first, in one transaction, then their messages.

        A broker that is away fails nothing: the jobs stay `queued`, a warning is logged, and a
        worker publishes them when it can.

        Returns:
            What became of each request, in their order: its job, and whether that is a new one.

        Raises:
            InvalidRequestError: a request cannot be stored; nothing is submitted.
            DuplicateClientKeyError: a key belongs to a different request; nothing is submitted.
            StoreUnavailableError: the database cannot be reached; nothing is submitted.
        """
        submissions = self._store.add(list(requests))
        dispatch(self._app, self._store, [s.job for s in submissions if s.created])
        fresh = {job.id: job for job in self._store.get_many([s.job.id for s in submissions])}
        return [Submission(fresh[s.job.id], s.created) for s in submissions]

    def submit_each(self, requests: Iterable[CaptionRequest]) -> Iterator[Submission | Refusal]:
        """Submit any number of requests, some hundreds in memory and in a transaction at a time.

        A request that is refused harms no other. When the broker goes away the rows are still
        written, and a worker publishes them later.

        Yields:
            What became of each request, in their order, once it is committed: a submission, or the
            error that `submit` would have raised.
        """
        broker = True
        requests = iter(requests)
        while chunk := list(itertools.islice(requests, SUBMIT_CHUNK)):
            results = add_each(self._store, chunk)
            new = [s.job for s in results if isinstance(s, Submission) and s.created]
            # A broker that is away is asked once: it costs seconds to find out.
            broker = broker and dispatch(self._app, self._store, new)
            yield from results

    def get(self, job_id: UUID | str) -> Job:
        """Look one job up, with its captions once it has any.

        Raises:
            InvalidRequestError: it is no job's id, which are UUIDs.
            JobNotFoundError: no job has this id.
            StoreUnavailableError: the database cannot be reached.
        """
        return self._store.get(_uuid(job_id))

    def list(
        self, *, state: JobState | None = None, limit: int = 50, before: Job | None = None
    ) -> list[Job]:
        """One page of jobs, newest first.

        Args:
            state: only jobs in this one.
            limit: how many at most.
            before: the last job of the page before; None: the first page.
        """
        cursor = Cursor.after(before) if before else None
        return self._store.list_jobs(state=state, limit=limit, before=cursor)

    def count_by_state(self) -> dict[JobState, int]:
        """How many jobs are in each state; every state is there."""
        return self._store.count_by_state()

    def wait(self, job_id: UUID | str, *, timeout_seconds: float | None = None) -> Job:
        """Wait until a job has ended, however it did: `job.state` says how.

        Args:
            job_id: which one.
            timeout_seconds: how long to wait; None: until it has ended.

        Raises:
            InvalidRequestError: it is no job's id, which are UUIDs.
            JobNotFoundError: no job has this id.
            StoreUnavailableError: the database cannot be reached.
            TimeoutError: it has not ended in time; it goes on all the same.
        """
        for job in self.wait_each([job_id], timeout_seconds=timeout_seconds):
            return job
        raise TimeoutError(f"job {job_id} has not ended after {timeout_seconds} s")

    def wait_each(
        self,
        job_ids: Iterable[UUID | str],
        *,
        timeout_seconds: float | None = None,
        look: Callable[[Job], None] = lambda _: None,
    ) -> Iterator[Job]:
        """Yield jobs as they end; stops silently when the time is up.

        Args:
            job_ids: which ones.
            timeout_seconds: how long to wait; None: until all have ended.
            look: called with each that has not ended, whenever the database was asked.

        Raises:
            InvalidRequestError: one of them is no job's id.
            JobNotFoundError: one of them does not exist.
            StoreUnavailableError: the database cannot be reached.
        """
        pending = list(dict.fromkeys(_uuid(job_id) for job_id in job_ids))
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        pause_seconds = FIRST_PAUSE_SECONDS
        while pending:
            ended: set[UUID] = set()
            for first in range(0, len(pending), LOOKUP_CHUNK):
                for job in self._existing(pending[first : first + LOOKUP_CHUNK]):
                    if job.state.terminal:
                        ended.add(job.id)
                        yield job
                    else:
                        look(job)
            pending = [job_id for job_id in pending if job_id not in ended]
            if not pending or (deadline is not None and time.monotonic() >= deadline):
                return
            pause_seconds = (
                FIRST_PAUSE_SECONDS if ended else min(pause_seconds * 1.5, LAST_PAUSE_SECONDS)
            )
            time.sleep(pause_seconds)

    def _existing(self, job_ids: Sequence[UUID]) -> Sequence[Job]:
        found = self._store.get_many(job_ids)
        if len(found) < len(job_ids):
            missing = set(job_ids) - {job.id for job in found}
            raise JobNotFoundError(min(missing))
        return found

    def cancel(self, job_id: UUID | str) -> Job:
        """Cancel a job that has not ended; one that has is left as it is.

        A worker that is captioning it finds its result unwanted.

        Returns:
            The job as it is now.

        Raises:
            InvalidRequestError: it is no job's id, which are UUIDs.
            JobNotFoundError: no job has this id.
            StoreUnavailableError: the database cannot be reached.
        """
        self._store.cancel([_uuid(job_id)])
        return self.get(job_id)


def _check_kind(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        wanted = "a text" if kind is str else "a mapping"
        raise InvalidRequestError(f"{name} must be {wanted}, not {type(value).__name__}")


def _lane(lane: str) -> Lane:
    try:
        return Lane(lane)
    except ValueError:
        raise InvalidRequestError(f"lane must be {' or '.join(Lane)}") from None


def _uuid(job_id: UUID | str) -> UUID:
    if isinstance(job_id, UUID):
        return job_id
    try:
        return UUID(job_id)
    except (AttributeError, TypeError, ValueError):  # whatever it is
        raise InvalidRequestError(f"{job_id!r} is not a job id; those are UUIDs") from None


@functools.cache
def default() -> Jobs:
    """The `Jobs` of this process's environment, made when first used."""
    return Jobs()


def _of_default(
    method: Callable[Concatenate[Jobs, Parameters], Result],
) -> Callable[Parameters, Result]:
    """A method on the environment's installation, with the method's own signature and docstring."""

    @functools.wraps(method)
    def call(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        return method(default(), *arguments, **named)

    signature = inspect.signature(method)
    _, *parameters = signature.parameters.values()
    # `inspect` looks there first; functions are not declared to have it.
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return call


submit = _of_default(Jobs.submit)
get = _of_default(Jobs.get)
wait = _of_default(Jobs.wait)
cancel = _of_default(Jobs.cancel)

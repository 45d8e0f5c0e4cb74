"""A job on its way: claimed, ended, put back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from captioner.domain.captions import Caption, FrameCaptions, ModelInfo
from captioner.domain.request import CaptionRequest
from captioner.domain.states import JobState, Lane
from captioner.errors import ErrorCode
from captioner.options import AltTextOptions, GenerationOptions, VideoOptions, options_mapping
from captioner.source import Source
from captioner.webhook_url import webhook_display


@dataclass(frozen=True, slots=True)
class JobFailure:
    """Why a job failed."""

    code: ErrorCode
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedJob:
    """A job in one worker's hands, at one attempt: all that it needs of it, and no more.

    Thousands a second pass through a worker, which asks for none of what else is known of a `Job`.
    """

    request: CaptionRequest
    #: As of `Job`, counting this one.
    attempt: int
    #: As of `Job`.
    retries: int
    crashes: int
    frames_done: int | None
    frames_total: int | None

    @property
    def id(self) -> UUID:
        """The job's id."""
        return self.request.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it stands in SQL, with its captions when it has any."""

    id: UUID
    state: JobState
    source: Source
    options: GenerationOptions
    alt_text: AltTextOptions
    video: VideoOptions
    client_key: str | None
    metadata: Mapping[str, Any]
    lane: Lane
    deadline_at: datetime | None
    #: Who is told how it ended; it may hold a secret.
    webhook_url: str | None = field(repr=False)
    #: Times this job was claimed by a worker; also the fencing token of a record.
    attempt: int
    #: Attempts that failed and were followed by another; those handed back or lost do not count.
    retries: int
    #: Times a process died with this job alone in it.
    crashes: int
    owner: str | None
    #: A retry is not run before this; None: at once, or it is not waiting for one.
    not_before: datetime | None
    created_at: datetime
    #: When its message was last given to the broker; None: never yet.
    dispatched_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    #: Why it failed; of a job that has not ended, why its last attempt did.
    failure: JobFailure | None
    model: ModelInfo | None
    #: Seconds by stage: `fetch`, `decode`, `engine`, `total`.
    timings: Mapping[str, float]
    #: Frames of a video that have captions, as far as is recorded; None: nothing is, or it is none.
    frames_done: int | None
    #: How many frames there will be, once that is known.
    frames_total: int | None
    captions: tuple[Caption, ...] = ()

    @property
    def request(self) -> CaptionRequest:
        """What the client asked for."""
        return CaptionRequest(
            id=self.id,
            source=self.source,
            options=self.options,
            alt_text=self.alt_text,
            video=self.video,
            client_key=self.client_key,
            metadata=self.metadata,
            lane=self.lane,
            deadline_at=self.deadline_at,
            webhook_url=self.webhook_url,
        )

    def as_mapping(self) -> dict[str, Any]:
        """The job as programs see it, everywhere: JSON values only, URLs redacted."""
        return {
            "id": str(self.id),
            "state": self.state.value,
            "source": self.source.display,
            "client_key": self.client_key,
            "metadata": dict(self.metadata),
            "lane": self.lane.value,
            "options": options_mapping(self.options, self.alt_text, self.video),
            "deadline_at": _iso(self.deadline_at),
            "webhook_url": webhook_display(self.webhook_url) if self.webhook_url else None,
            "attempt": self.attempt,
            "retries": self.retries,
            "crashes": self.crashes,
            "not_before": _iso(self.not_before),
            "created_at": _iso(self.created_at),
            "started_at": _iso(self.started_at),
            "finished_at": _iso(self.finished_at),
            "captions": [dataclasses.asdict(caption) for caption in self.captions],
            "error": dataclasses.asdict(self.failure) if self.failure else None,
            "model": dataclasses.asdict(self.model) if self.model else None,
            "timings": dict(self.timings),
            "frames_done": self.frames_done,
            "frames_total": self.frames_total,
        }

    @property
    def caption(self) -> str | None:
        """The best caption's text, or None."""
        return self.captions[0].text if self.captions else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended: what a worker asks the store to record."""

    job_id: UUID
    #: The attempt this worker claimed; the record is refused when another has begun since.
    attempt: int
    #: A terminal state.
    state: JobState
    captions: tuple[Caption, ...] = ()
    failure: JobFailure | None = None
    model: ModelInfo | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    #: Frames of a video that have captions; what was kept of them is deleted. None: it is none.
    frames_done: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an attempt at a video is: what a worker asks the store to keep until it ends."""

    job_id: UUID
    #: The attempt this worker claimed; nothing is kept when another has begun since.
    attempt: int
    #: Which one said it.
    model: ModelInfo
    #: Frames with their captions that the store has not got, in the order in which they came.
    frames: tuple[FrameCaptions, ...]
    #: The number of the first of them among all frames of the job, from 0.
    first: int
    #: Frames that have captions by now, those of attempts before this one included.
    done: int
    #: How many there will be, when that is known.
    total: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeue:
    """An attempt that ended without a result: what a worker asks the store to put back."""

    job_id: UUID
    #: The attempt this worker claimed; nothing changes when another has begun since.
    attempt: int
    #: The job is not claimed before this; None: at once.
    not_before: datetime | None = None
    #: Why the attempt failed, which counts as a retry; None: the worker hands it back untried.
    failure: JobFailure | None = None
    #: A process died of this job alone: counts as a crash.
    crashed: bool = False


def _iso(time: datetime | None) -> str | None:
    return time.isoformat() if time else None

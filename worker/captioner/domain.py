"""The nouns of the system: frozen values that every layer understands and none owns."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import UUID, uuid4

from captioner.errors import ErrorCode, InvalidRequestError, JobError
from captioner.options import AltTextOptions, GenerationOptions, options_mapping
from captioner.source import Source
from captioner.video_options import VideoOptions
from captioner.webhook_url import check_webhook_url, webhook_display

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_CLIENT_KEY_CHARACTERS = 255
#: `Caption.origin` of what the model says of all frames of a video together.
JOINT = "joint"


class JobState(StrEnum):
    """Where a job is: `queued → processing → succeeded | failed | canceled | expired`."""

    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        """True when the state never changes again."""
        return self not in (JobState.QUEUED, JobState.PROCESSING)


class Lane(StrEnum):
    """Which queue a job waits in; an editor's picture overtakes a backfill."""

    INTERACTIVE = "interactive"
    BULK = "bulk"
    #: In a queue of its own: a long video would hold many pictures up.
    VIDEO = "video"


class EndpointState(StrEnum):
    """Whether a registered receiver of webhooks is sent any."""

    ENABLED = "enabled"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionRequest:
    """What a client asks for: one image (or video) to be captioned.

    Raises:
        InvalidRequestError: a value cannot be stored or used.
    """

    source: Source
    options: GenerationOptions = field(default_factory=GenerationOptions)
    #: For plugins that make alt texts.
    alt_text: AltTextOptions = field(default_factory=AltTextOptions)
    #: Which frames of a video are captioned.
    video: VideoOptions = field(default_factory=VideoOptions)
    #: The client's own key: the same key never makes a second job.
    client_key: str | None = None
    #: Opaque to captioner; stored, and echoed in results and events.
    metadata: Mapping[str, Any] = field(default_factory=dict)
    lane: Lane = Lane.INTERACTIVE
    #: Not begun or tried again after this, with a time zone (kept as UTC): it expires.
    deadline_at: datetime | None = None
    #: Who is told how the job ended; it may hold a secret.
    webhook_url: str | None = field(default=None, repr=False)
    id: UUID = field(default_factory=uuid4)

    def __post_init__(self) -> None:
        """Refuse an unusable client key, deadline or webhook URL."""
        key = self.client_key
        if key is not None and not 0 < len(key) <= MAX_CLIENT_KEY_CHARACTERS:
            raise InvalidRequestError(
                f"client_key must have 1 to {MAX_CLIENT_KEY_CHARACTERS} characters"
            )
        if key is not None and "\x00" in key:
            raise InvalidRequestError("client_key must not contain NUL characters")
        if self.deadline_at is not None:
            object.__setattr__(self, "deadline_at", _deadline(self.deadline_at))
        if self.webhook_url is not None:
            check_webhook_url(self.webhook_url)


def _deadline(value: object) -> datetime:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InvalidRequestError("deadline_at must be a time with a time zone")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidRequestError("deadline_at is beyond the calendar") from None


@dataclass(frozen=True, slots=True)
class Media:
    """A source brought to this machine, not yet decoded."""

    #: A regular file: the local source itself, or a copy in the job's own folder.
    path: Path
    #: The source as it may be shown (`Source.display`).
    name: str
    #: The path was checked, free of symbolic links; it is not opened when it has some by now.
    real: bool = False

    def open(self, *, buffering: int = -1) -> BinaryIO:
        """Open the file for reading; better than by its path, which may lead elsewhere by now.

        Raises:
            JobError: it cannot be read, or has become something else than a file.
        """
        from captioner.real_files import open_real, open_regular  # POSIX: where jobs are worked on

        try:
            descriptor = open_real(self.path) if self.real else open_regular(self.path)
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise JobError(ErrorCode.SOURCE_NOT_ALLOWED, f"{self.name} is not a file") from None
            raise JobError(
                ErrorCode.FETCH_FAILED, f"{self.name}: {error.strerror or 'cannot be read'}"
            ) from error
        return open(descriptor, "rb", buffering=buffering)  # noqa: PTH123 (it has no path)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture ready for the model, and when it was seen."""

    #: uint8 `[height, width, 3]`, RGB, already of the model's size.
    pixels: NDArray[np.uint8] = field(repr=False)
    #: Seconds from the start of the media; None for a still image.
    time_seconds: float | None = None
    #: How many the media will give in all, this one included, when that is known.
    expected_frames: int | None = None
    #: How long the media lasts, when that is known.
    media_seconds: float | None = None
    #: Looks like the one before it, whose captions it gets: the model is not asked.
    repeated: bool = False
    #: Width over height of the picture before it was squared.
    aspect_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """One caption of one job."""

    #: Prompt and generated text.
    text: str
    #: The generated text alone.
    continuation: str
    #: Mean log-probability of the generated tokens, [SEP] included; 0 is certainty.
    score: float
    #: 0 is the best.
    rank: int = 0
    #: Sum of log-probabilities over length ** length_penalty; None unless beams were searched.
    beam_score: float | None = None
    #: Of a video: from when to when it holds, and the time of the frame that it is of.
    start_seconds: float | None = None
    end_seconds: float | None = None
    frame_seconds: float | None = None
    #: Empty: the picture is decorative; None: nobody made one.
    alt_text: str | None = None
    #: What made its text: `model`, or the name of the plugin that did. What was made of all frames
    #: together stays `joint` whatever plugins do to it: that it is experimental must not be lost.
    origin: str = "model"

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, which carries captions out of the engine: its own way is far slower."""
        return _caption, tuple(getattr(self, name) for name in self.__slots__)


def _caption(*values: Any) -> Caption:
    return Caption(**dict(zip(Caption.__slots__, values, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameCaptions:
    """What the model says of one frame."""

    #: Seconds from the start of the media; None for a still image.
    time_seconds: float | None
    #: Best first, at least one.
    captions: tuple[Caption, ...]
    #: How long the media lasts, when that is known.
    media_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Which model made a result, stamped on every one."""

    id: str
    #: Snapshot hash of the hub, or SHA-256 of the local weights file.
    revision: str
    #: `float16`, `bfloat16`, `float32` or `float64`.
    dtype: str
    device: str
    backend: str
    #: Pictures are squashed to this many pixels in height and width.
    image_size: int


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

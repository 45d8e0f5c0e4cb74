"""Every way a job can fail, as stable codes, and the exceptions that carry them.

A code is part of the public interface: it is stored in SQL, sent in events and printed by the CLI.
Its meaning never changes; new codes may be added.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class ErrorCode(StrEnum):
    """Why a job ended in `failed` (or `expired`), as stored and shown."""

    SOURCE_NOT_ALLOWED = "source_not_allowed"
    FETCH_FAILED = "fetch_failed"
    FETCH_TIMEOUT = "fetch_timeout"
    MEDIA_TOO_LARGE = "media_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    DECODE_FAILED = "decode_failed"
    PIXEL_LIMIT = "pixel_limit"
    VIDEO_NO_FRAMES = "video_no_frames"
    VIDEO_TOO_LONG = "video_too_long"
    INVALID_REQUEST = "invalid_request"
    PROMPT_TOO_LONG = "prompt_too_long"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    OUT_OF_MEMORY = "out_of_memory"
    WORKER_LOST = "worker_lost"
    PLUGIN_FAILED = "plugin_failed"
    INTERNAL = "internal"

    @property
    def retryable(self) -> bool:
        """True when the same job may succeed later without being changed."""
        return self in _RETRYABLE


_RETRYABLE = frozenset(
    {
        ErrorCode.FETCH_FAILED,
        ErrorCode.FETCH_TIMEOUT,
        ErrorCode.OUT_OF_MEMORY,
        ErrorCode.WORKER_LOST,
        ErrorCode.INTERNAL,
    }
)


#: When a job may be tried again that a worker was not fit for: soon, because others may be.
_UNFIT_SECONDS = 1.0


class CaptionerError(Exception):
    """Base of everything captioner raises on purpose; its text is one line fit for a person."""


class JobError(CaptionerError):
    """A job cannot be completed; ends it with `code` and leaves the worker running."""

    def __init__(self, code: ErrorCode, message: str, *, retryable: bool | None = None) -> None:
        """`retryable` overrides the code's default: a 404 is `fetch_failed`, yet final."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = code.retryable if retryable is None else retryable

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process boundaries; what arrives is a plain `JobError`."""
        return _restore, (self.code, self.message, self.retryable)


def _restore(code: ErrorCode, message: str, retryable: bool) -> JobError:  # noqa: FBT001
    return JobError(code, message, retryable=retryable)


class InvalidRequestError(JobError):
    """The request contradicts itself or asks for something the model cannot do."""

    def __init__(self, message: str) -> None:
        """`message` names the field and the values it may have."""
        super().__init__(ErrorCode.INVALID_REQUEST, message)


class PluginError(JobError):
    """A provider plugin raised; the job fails with the plugin's name in the message."""

    def __init__(self, plugin: str, hook: str, error: BaseException | str) -> None:
        """`plugin` and `hook` say where to look; `error` is what was raised there, or its text."""
        self.reason = error if isinstance(error, str) else describe(error)
        super().__init__(
            ErrorCode.PLUGIN_FAILED, f"plugin {plugin!r} failed in {hook}: {self.reason}"
        )
        self.plugin = plugin
        self.hook = hook


class CrashError(JobError):
    """The process that worked on this job, and on no other job, died, hung or ran out of memory.

    Counted in SQL: at the last of `MAX_CRASHES` the job fails with `code`, before that it is tried
    again.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        """`code` is `worker_lost` or `out_of_memory`; `message` says what died, and how."""
        super().__init__(code, message, retryable=True)


class DeviceLostError(CaptionerError):
    """The accelerator refuses all further work of this process, as CUDA does after an error.

    A new process can use it. The engine's process ends and is started again, and what it had not
    finished is run again.
    """


class CanceledError(CaptionerError):
    """The job was canceled while it ran; there is no result."""


class HandedBackError(CaptionerError):
    """The worker ends, and what is done of this job is kept; it belongs back in the queue."""


class NotNowError(CaptionerError):
    """What stands in a job's way is not its own; the job belongs back in the queue, untried."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        """`retry_after_seconds` is when the job's turn is to be expected, from now."""
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class HostBusyError(NotNowError):
    """The host of a job's source has enough to do."""


class UnfitError(NotNowError):
    """This worker can do no such job now: its disk is full, or it can start no process."""

    def __init__(self, message: str) -> None:
        """`message` says what is wrong with it, and what to do."""
        super().__init__(message, _UNFIT_SECONDS)


class SettingsError(CaptionerError):
    """A setting has a value that cannot work; the text names the setting and the remedy."""


class ModelLoadError(CaptionerError):
    """The model cannot be loaded: not found, incomplete, of another kind, or pickled."""


class SchemaError(CaptionerError):
    """The database schema is not the one this version needs."""


class StoreUnavailableError(CaptionerError):
    """The database cannot be reached or opened."""


class StoreLockedError(StoreUnavailableError):
    """Another connection to the database has held a lock for longer than anybody waits."""


class BrokerUnavailableError(CaptionerError):
    """The broker cannot be reached."""

    @classmethod
    def because_of(cls, error: BaseException) -> Self:
        """For what a library raised, and what made it do so."""
        cause = error.__cause__ or error
        return cls(f"the broker cannot be reached (CAPTIONER_BROKER__URL): {describe(cause)}")


class JobNotFoundError(CaptionerError):
    """No job has this id. An unknown id is never reported as pending."""

    def __init__(self, job_id: object) -> None:
        """`job_id` is shown as the caller wrote it."""
        super().__init__(f"no job has the id {job_id}")


class EventNotFoundError(CaptionerError):
    """No event has this id."""

    def __init__(self, event_id: object) -> None:
        """`event_id` is shown as the caller wrote it."""
        super().__init__(f"no event has the id {event_id}")


class DeliveryNotFoundError(CaptionerError):
    """No delivery has this id."""

    def __init__(self, delivery_id: object) -> None:
        """`delivery_id` is shown as the caller wrote it."""
        super().__init__(f"no delivery has the id {delivery_id}; see: captioner events list")


class EndpointNotFoundError(CaptionerError):
    """No webhook endpoint has this id."""

    def __init__(self, endpoint_id: object) -> None:
        """`endpoint_id` is shown as the caller wrote it."""
        super().__init__(
            f"no webhook endpoint has the id {endpoint_id}; see: captioner webhooks list"
        )


class WebhookVerificationError(CaptionerError):
    """A request is not to be believed: a receiver answers it with 401."""


class DeliveryError(CaptionerError):
    """What a plugin raises when a delivery failed, to say how it goes on; else as scheduled."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        excerpt: str = "",
        retry_after_seconds: float | None = None,
        permanent: bool = False,
    ) -> None:
        """Say what is known.

        Args:
            message: one line for the delivery log; no secrets.
            status: of the answer, such as the HTTP status.
            excerpt: the beginning of the answer; 1,024 characters are kept.
            retry_after_seconds: not tried again before then; a day at most is honoured.
            permanent: never tried again.
        """
        super().__init__(message)
        self.status = status
        self.excerpt = excerpt
        self.retry_after_seconds = retry_after_seconds
        self.permanent = permanent


class DuplicateClientKeyError(CaptionerError):
    """The client key belongs to a job with another source or other options."""


def describe(error: BaseException) -> str:
    """One line for an exception of any kind: its type and the first line of its text."""
    try:
        text = str(error).strip().partition("\n")[0]
    except Exception:  # noqa: BLE001  # a plugin's own exception may fail at that, too
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

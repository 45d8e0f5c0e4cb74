"""Where things are that have a state."""

from __future__ import annotations

from enum import StrEnum


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

"""The nouns of the system: frozen values that every layer understands and none owns."""

from __future__ import annotations

from captioner.domain.captions import JOINT, Caption, FrameCaptions, ModelInfo
from captioner.domain.job import ClaimedJob, Job, JobFailure, Outcome, Progress, Requeue
from captioner.domain.media import Frame, Media
from captioner.domain.request import MAX_CLIENT_KEY_CHARACTERS, CaptionRequest
from captioner.domain.states import EndpointState, JobState, Lane

__all__ = [
    "JOINT",
    "MAX_CLIENT_KEY_CHARACTERS",
    "Caption",
    "CaptionRequest",
    "ClaimedJob",
    "EndpointState",
    "Frame",
    "FrameCaptions",
    "Job",
    "JobFailure",
    "JobState",
    "Lane",
    "Media",
    "ModelInfo",
    "Outcome",
    "Progress",
    "Requeue",
]

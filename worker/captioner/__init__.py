"""captioner: a durable captioning service. This module is what plugins import.

Sites that submit jobs import `captioner.jobs`, receivers of webhooks `captioner.webhooks`, tests of
plugins `captioner.testing`.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING

import pluggy

from captioner.domain import (
    Caption,
    CaptionRequest,
    Frame,
    FrameCaptions,
    Job,
    JobState,
    Media,
    ModelInfo,
)
from captioner.errors import (
    CaptionerError,
    DeliveryError,
    DeviceLostError,
    ErrorCode,
    JobError,
)
from captioner.events import Event, Receipt
from captioner.model import CaptionModel, JointCaptionModel
from captioner.options import AltTextOptions, GenerationOptions, VideoOptions
from captioner.source import Source
from captioner.stats import WorkerStats
from captioner.video_containers import PREFIX_BYTES, find_container
from captioner.words import content_words

if TYPE_CHECKING:
    from captioner.media.frames import square
    from captioner.settings import MediaSettings, Settings
    from captioner.store import Store

__version__ = version("captioner")

#: Marks a plugin's function as the implementation of the hook of the same name.
hookimpl = pluggy.HookimplMarker("captioner")

#: Where the names are that load numpy, Pillow, pydantic or SQLAlchemy: who does not use them need
#: not wait.
_ELSEWHERE = {
    "MediaSettings": "captioner.settings",
    "Settings": "captioner.settings",
    "Store": "captioner.store",
    "square": "captioner.media.frames",
}

__all__ = [
    "PREFIX_BYTES",
    "AltTextOptions",
    "Caption",
    "CaptionModel",
    "CaptionRequest",
    "CaptionerError",
    "DeliveryError",
    "DeviceLostError",
    "ErrorCode",
    "Event",
    "Frame",
    "FrameCaptions",
    "GenerationOptions",
    "Job",
    "JobError",
    "JobState",
    "JointCaptionModel",
    "Media",
    "MediaSettings",
    "ModelInfo",
    "Receipt",
    "Settings",
    "Source",
    "Store",
    "VideoOptions",
    "WorkerStats",
    "__version__",
    "content_words",
    "find_container",
    "hookimpl",
    "square",
]


def __getattr__(name: str) -> object:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE[name]), name)

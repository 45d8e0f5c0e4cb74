"""captioner: a durable captioning service. This module is the public interface for plugins."""

from __future__ import annotations

from importlib.metadata import version

import pluggy

from captioner.domain import Caption, CaptionRequest, Frame, Job, JobState, Media, Source
from captioner.errors import CaptionerError, ErrorCode, JobError
from captioner.events import Event
from captioner.options import GenerationOptions

__version__ = version("captioner")

#: Marks a plugin's function as the implementation of the hook of the same name.
hookimpl = pluggy.HookimplMarker("captioner")

__all__ = [
    "Caption",
    "CaptionRequest",
    "CaptionerError",
    "ErrorCode",
    "Event",
    "Frame",
    "GenerationOptions",
    "Job",
    "JobError",
    "JobState",
    "Media",
    "Source",
    "__version__",
    "hookimpl",
]

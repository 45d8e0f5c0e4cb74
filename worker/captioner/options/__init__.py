"""What a request may ask for: of the model, of a video, and of the alt text."""

from __future__ import annotations

from captioner.options.alt_text import AltTextOptions
from captioner.options.generation import PAPER, GenerationOptions
from captioner.options.mapping import (
    options_as_stored,
    options_from_mapping,
    options_mapping,
)
from captioner.options.video import VideoOptions

__all__ = [
    "PAPER",
    "AltTextOptions",
    "GenerationOptions",
    "VideoOptions",
    "options_as_stored",
    "options_from_mapping",
    "options_mapping",
]

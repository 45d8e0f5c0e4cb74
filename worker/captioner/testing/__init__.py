"""For tests of captioner and of its plugins.

Fakes stand in for the model alone; databases, brokers and workers are real in every test.
"""

from __future__ import annotations

from captioner.testing.jobs import caption_with, memory_store, registered_plugin
from captioner.testing.models import (
    FakeCaption,
    FakeCaptionModel,
    FaultyCaptionModel,
    load_faulty_model,
)

__all__ = [
    "FakeCaption",
    "FakeCaptionModel",
    "FaultyCaptionModel",
    "caption_with",
    "load_faulty_model",
    "memory_store",
    "registered_plugin",
]

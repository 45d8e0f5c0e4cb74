"""The engine: what stands between jobs and the resident model.

No torch here at import: a process that only talks to an engine never loads it.
"""

from captioner.engine.api import Engine, EngineClosedError
from captioner.engine.inline import CaptionModel, InlineEngine

__all__ = ["CaptionModel", "Engine", "EngineClosedError", "InlineEngine"]

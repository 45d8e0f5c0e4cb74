"""The engine: what stands between jobs and the resident model.

No torch here at import: a process that only talks to an engine never loads it.
"""

from captioner.engine.api import Engine, EngineClosedError, EngineStats
from captioner.engine.inline import InlineEngine
from captioner.engine.process import ProcessEngine

__all__ = [
    "Engine",
    "EngineClosedError",
    "EngineStats",
    "InlineEngine",
    "ProcessEngine",
]

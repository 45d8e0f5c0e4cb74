"""What is to be measured, and what one measurement found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

#: Jobs of one message on the side `chunked`.
CHUNK = 32


class Side(StrEnum):
    """What takes turns."""

    #: Stock Celery and a task that does nothing: the yardstick.
    NOOP = "noop"
    #: One job a message.
    SINGLE = "single"
    #: `CHUNK` jobs a message.
    CHUNKED = "chunked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be measured."""

    #: Jobs, or tasks, of each side in each round.
    jobs: int
    rounds: int
    #: Jobs are JPEG files of 640×480 instead of a frame that needs no decoding.
    decode: bool = False
    #: Rows of ended jobs in the tables before the first round.
    finished: int = 0
    #: Of a real model; None: one that answers at once.
    model_id: str | None = None

    @property
    def steps(self) -> int:
        """How often progress is told: for preparing, and for each side of each round."""
        return 1 + self.rounds * len(Side)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one side did in one round."""

    jobs: int
    #: From the first job's claim, or task's begin, to the last one's record, or end.
    seconds: float
    #: Processor time of the worker and its children in that time.
    cpu_seconds: float
    #: Main memory of the worker, without its children, at the end.
    resident_bytes: int
    #: What the engine did meanwhile; nothing on the side `noop`.
    batches: int = 0
    pictures: int = 0
    busy_seconds: float = 0.0

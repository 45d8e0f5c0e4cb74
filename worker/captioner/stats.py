"""What a worker has done, as plugins that measure it are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStats:
    """Totals of one worker process since it began; they only grow.

    The mean size of a batch over a span of time is the growth of `pictures` over that of `batches`.
    """

    #: Batches the model has finished.
    batches: int = 0
    #: Pictures in them, failed ones included.
    pictures: int = 0
    #: Time the model spent on them.
    busy_seconds: float = 0.0
    #: Fresh engine processes after the first.
    engine_restarts: int = 0
    #: Failures by plugin and hook.
    plugin_errors: Mapping[tuple[str, str], int] = field(default_factory=dict)
    #: Attempts to deliver an event, by plugin and outcome: `delivered`, `failed` or `dead`.
    deliveries: Mapping[tuple[str, str], int] = field(default_factory=dict)
    #: Of the whole installation, not of this worker: jobs by state that have not ended.
    unfinished_jobs: Mapping[str, int] = field(default_factory=dict)

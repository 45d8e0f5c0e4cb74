"""How fast jobs pass from Redis through a worker into PostgreSQL, beside Celery doing nothing.

A real worker process runs a model that answers at once, so that the path alone is measured; the
yardstick is a worker of stock Celery, with as many threads, whose task does nothing. Both live all
the time and take turns, round by round, and medians count.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from captioner.bench.machine import describe_hardware, describe_versions
from captioner.bench.place import own_place
from captioner.bench.plan import Plan, Round, Side
from captioner.bench.starting import running_captioner, running_noop
from captioner.bench.tables import multiply_ended
from captioner.settings import Settings

#: Jobs before the first round, for each thread of a worker: it starts them, and opens connections.
WARM_UP = 4
#: Batches before it, of a real model: that may take seconds for each.
WARM_UP_BATCHES = 2


def measure(settings: Settings, plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure in a database and under Redis keys that are gone afterwards.

    Args:
        settings: name the servers, and are otherwise the worker's.
        plan: what is measured.
        say: told what begins.

    Returns:
        Numbers with units in their names, and what they were measured on.

    Raises:
        CaptionerError: a server cannot be used, a worker ends, or a job does not succeed.
    """
    say("preparing")
    report = {
        "hardware": describe_hardware(),
        "versions": describe_versions(settings),
        "jobs": plan.jobs,
        "decode": plan.decode,
        "finished_jobs_before": plan.finished,
        "model": plan.model_id,
        "concurrency": settings.concurrency,
    }
    with (
        tempfile.TemporaryDirectory(prefix="captioner-bench-") as folder,
        own_place(settings) as place,
    ):
        found = _rounds(place, plan, Path(folder), say)
    return report | summary(found, settings.engine.max_batch)


def _rounds(
    place: Settings, plan: Plan, folder: Path, say: Callable[[str], None]
) -> Mapping[Side, Sequence[Round]]:
    found: dict[Side, list[Round]] = {side: [] for side in Side}
    with running_noop(place, folder) as noop, running_captioner(place, plan, folder) as captioner:
        workers = {Side.NOOP: noop, Side.SINGLE: captioner, Side.CHUNKED: captioner}
        for side, worker in workers.items():
            worker.run(side, _warm_up_jobs(place, plan, side))
        if plan.finished:
            multiply_ended(place.database_url, plan.finished)
        for number in range(1, plan.rounds + 1):
            for side, worker in workers.items():
                say(f"round {number}, {side}")
                found[side].append(worker.run(side, plan.jobs))
    return found


def _warm_up_jobs(place: Settings, plan: Plan, side: Side) -> int:
    if plan.model_id is None or side is Side.NOOP:
        return WARM_UP * place.concurrency
    return WARM_UP_BATCHES * place.engine.max_batch


def summary(found: Mapping[Side, Sequence[Round]], max_batch: int) -> dict[str, Any]:
    """Medians of the rounds of each side, and the two sides that caption beside the yardstick.

    Batch fill and the engine's share are those of single-image messages.
    """
    rates = {
        side: median(one.jobs / one.seconds for one in rounds) for side, rounds in found.items()
    }
    single = found[Side.SINGLE]
    memory = [one.resident_bytes for one in found[Side.CHUNKED]]
    return {
        "noop_tasks_per_second": rates[Side.NOOP],
        "single_jobs_per_second": rates[Side.SINGLE],
        "single_ratio": rates[Side.SINGLE] / rates[Side.NOOP],
        "chunked_jobs_per_second": rates[Side.CHUNKED],
        "chunked_ratio": rates[Side.CHUNKED] / rates[Side.NOOP],
        "cpu_milliseconds_per_job": {
            side.value: median(1000 * one.cpu_seconds / one.jobs for one in rounds)
            for side, rounds in found.items()
        },
        "batch_fill": median(one.pictures / one.batches / max_batch for one in single),
        "engine_share": median(one.busy_seconds / one.seconds for one in single),
        "rounds": [
            {side.value: found[side][number].jobs / found[side][number].seconds for side in Side}
            for number in range(len(single))
        ],
        "memory": {
            "jobs": sum(one.jobs for side in (Side.SINGLE, Side.CHUNKED) for one in found[side]),
            "resident_bytes_early": memory[0],
            "resident_bytes_late": memory[-1],
            "resident_bytes_growth": memory[-1] - memory[0],
        },
    }

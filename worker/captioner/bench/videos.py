"""Videos through Redis, a worker and its model: what sampling costs, and how full batches are."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner import celery as captioner_celery
from captioner.bench.machine import describe_hardware, describe_versions
from captioner.bench.place import own_place
from captioner.bench.processes import running
from captioner.bench.starting import captioner_environment
from captioner.bench.workers import RunningWorker
from captioner.domain import Job, JobState, Lane
from captioner.errors import CaptionerError
from captioner.jobs import Jobs
from captioner.settings import Settings

#: What is said at the end of a job, by stage.
STAGES = ("fetch", "decode", "engine", "total")


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """What is to be measured."""

    files: Sequence[Path]
    #: Of each video.
    frames: int
    #: How many videos are submitted at once; the files are taken in turn.
    together: int

    @property
    def steps(self) -> int:
        """How often progress is told."""
        return len(self.files) + 2


def measure_videos(
    settings: Settings, plan: VideoPlan, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure in a database and under Redis keys that are gone afterwards.

    Each file is captioned alone first, then many of them together.

    Args:
        settings: name the servers and the model, and are otherwise the worker's.
        plan: what is measured.
        say: told what begins.

    Returns:
        Numbers with units in their names, and what they were measured on.

    Raises:
        CaptionerError: a server cannot be used, the worker ends, or a job does not succeed.
    """
    say("starting a worker")
    report = {
        "hardware": describe_hardware(),
        "versions": describe_versions(settings),
        "generation": settings.generation.model_dump(),
        "frames": plan.frames,
        "max_batch": settings.engine.max_batch,
    }
    with (
        tempfile.TemporaryDirectory(prefix="captioner-bench-") as folder,
        own_place(settings) as place,
        _running_worker(place, plan, Path(folder)) as worker,
        Jobs(place) as jobs,
    ):
        # Decoders start, and models choose their kernels, with the first.
        _captioned(jobs, worker, plan, plan.files[:1])
        alone = []
        for path in plan.files:
            say(f"{path.name} alone")
            (job,) = _captioned(jobs, worker, plan, [path])
            alone.append({"file": path.name, **_row(job)})
        say(f"{plan.together} together")
        before = worker.engine()
        many = list(itertools.islice(itertools.cycle(plan.files), plan.together))
        ended = _captioned(jobs, worker, plan, many)
        done = {name: value - before[name] for name, value in worker.engine().items()}
    together = {"videos": plan.together, "frames": sum(job.frames_done or 0 for job in ended)}
    return report | {
        "model": _model(ended[0]),
        "alone": alone,
        "sampling_share": sum(one["decode_seconds"] for one in alone)
        / sum(one["total_seconds"] for one in alone),
        "together": together | filling_of(ended, done, settings.engine.max_batch),
    }


def filling_of(ended: Sequence[Job], done: dict[str, Any], max_batch: int) -> dict[str, Any]:
    """How full the batches of these jobs were, and how full they could have been at best.

    Args:
        ended: jobs that nothing else ran beside.
        done: what the engine did meanwhile.
        max_batch: the most pictures of one batch.
    """
    began = min(job.started_at for job in ended if job.started_at)
    seconds = (max(job.finished_at for job in ended if job.finished_at) - began).total_seconds()
    fewest = math.ceil(done["pictures"] / max_batch)
    return {
        # Frames that look like the one before are not captioned.
        "pictures": done["pictures"],
        "batches": done["batches"],
        "batch_fill": done["pictures"] / done["batches"] / max_batch,
        # The last batch has what is left over.
        "fewest_batches": fewest,
        "best_batch_fill": done["pictures"] / fewest / max_batch,
        "seconds": seconds,
        "engine_share": done["busy_seconds"] / seconds,
    }


def _model(job: Job) -> dict[str, str]:
    model = job.model
    return {"id": model.id, "dtype": model.dtype, "device": model.device} if model else {}


def _row(job: Job) -> dict[str, Any]:
    seconds = {f"{stage}_seconds": job.timings.get(stage, 0.0) for stage in STAGES}
    share = seconds["decode_seconds"] / seconds["total_seconds"]
    return {"frames": job.frames_done, **seconds, "sampling_share": share}


def _captioned(
    jobs: Jobs, worker: RunningWorker, plan: VideoPlan, paths: Sequence[Path]
) -> list[Job]:
    """Submit these at once; the jobs when all have ended."""
    video = {"frames": plan.frames}
    submitted = [jobs.submit(str(path), video=video, lane=Lane.VIDEO) for path in paths]
    ended = list(jobs.wait_each([job.id for job in submitted], look=lambda _: worker.check()))
    for job in ended:
        if job.state is not JobState.SUCCEEDED:
            why = job.failure.message if job.failure else job.state
            raise CaptionerError(f"a job did not succeed: {why}")
    return ended


@contextlib.contextmanager
def _running_worker(place: Settings, plan: VideoPlan, folder: Path) -> Iterator[RunningWorker]:
    """`captioner worker` as it is, with no plugin but that of videos, and one that tells."""
    hostname = f"captioner{os.getpid()}@bench"
    root = plan.files[0].parent
    environment = captioner_environment(place, folder, hostname, allowed_root=root, plugins="video")
    with running(["-m", "captioner", "worker"], environment, folder / "captioner.log") as process:
        worker = RunningWorker(process, captioner_celery.create_app(place), hostname)
        worker.wait_until_ready()
        yield worker

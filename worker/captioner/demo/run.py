"""The demo itself: pictures, a worker process, a queue, a database, captions.

Nothing is special here: it uses `captioner.jobs` and `captioner worker` as any site does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from uuid import UUID

from captioner.demo.films import Film, random_film, write_film
from captioner.demo.scenes import draw, scenes
from captioner.domain import CaptionRequest, Job, JobState, Lane
from captioner.errors import CaptionerError
from captioner.jobs import Jobs
from captioner.options import GenerationOptions, VideoOptions
from captioner.settings import GenerationSettings, Settings
from captioner.source import Source
from captioner.suffixes import PICTURE_SUFFIXES

SCENE_COUNT = 24
SCENE_SEED = 2024
SCENE_PIXELS = 384
#: Every third scene is captioned with the prompt of BLIP's model card.
PROMPT = "a photography of"
PROMPT_EVERY = 3
#: The share of right captions below which the demo has failed.
LEAST_RIGHT = 0.95
FILM_SEED = 7
#: Seconds between the frames of the film that are captioned.
FILM_INTERVAL_SECONDS = 0.5
#: How long a worker may take to finish what it has in hand.
STOP_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture to be captioned, and the right caption where there is one."""

    path: Path
    prompt: str | None = None
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class DemoVideo:
    """A video to be captioned, and what is seen in it."""

    path: Path
    film: Film


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What came of the demo."""

    pictures: Sequence[Picture]
    #: In the order of the pictures.
    jobs: Sequence[Job]
    #: Exit code of the worker after it was told to stop.
    worker_exit_code: int
    video: DemoVideo | None = None
    #: The video's, when there is one.
    video_job: Job | None = None

    @property
    def images_per_second(self) -> float:
        """Captioned pictures over the time from the first claim to the last record."""
        ended = [job for job in self.jobs if job.started_at and job.finished_at]
        if not ended:
            return 0.0
        first = min(job.started_at for job in ended if job.started_at)
        last = max(job.finished_at for job in ended if job.finished_at)
        return len(ended) / max((last - first).total_seconds(), 1e-3)

    @property
    def scored(self) -> int:
        """Pictures whose right caption is known."""
        return sum(picture.expected is not None for picture in self.pictures)

    @property
    def right(self) -> int:
        """Pictures whose caption is exactly the right one."""
        return sum(
            picture.expected is not None and picture.expected == job.caption
            for picture, job in zip(self.pictures, self.jobs, strict=True)
        )

    @property
    def video_right(self) -> bool:
        """True when the video's segments are its scenes, at their times; also without a video."""
        if self.video is None or self.video_job is None:
            return True
        return self.video.film.told_by(self.video_job.captions, FILM_INTERVAL_SECONDS)

    @property
    def passed(self) -> bool:
        """True when every job succeeded, enough captions are right, and the worker ended well."""
        return (
            all(job.state is JobState.SUCCEEDED for job in self.jobs)
            and self.right >= LEAST_RIGHT * self.scored
            and self.video_right
            and self.worker_exit_code == 0
        )


def draw_scenes(folder: Path) -> list[Picture]:
    """Draw the demo's scenes as PNG files; the same ones every time."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number, scene in enumerate(scenes(SCENE_SEED, SCENE_COUNT)):
        path = folder / f"scene-{number:02}.png"
        draw(scene, SCENE_PIXELS).save(path)
        prompt = PROMPT if number % PROMPT_EVERY == PROMPT_EVERY - 1 else None
        expected = f"{prompt} {scene.caption}" if prompt else scene.caption
        pictures.append(Picture(path, prompt, expected))
    return pictures


def draw_video(folder: Path) -> DemoVideo | None:
    """Draw and encode the demo's film; None where PyAV is not installed."""
    if find_spec("av") is None:
        return None
    film, path = random_film(FILM_SEED), folder / "film.mp4"
    write_film(film, path, SCENE_PIXELS)
    return DemoVideo(path, film)


def find_photos(folder: Path) -> list[Picture]:
    """The pictures in a folder of the user's own.

    Raises:
        CaptionerError: there are none.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        raise CaptionerError(f"{folder} holds no pictures ({' '.join(sorted(PICTURE_SUFFIXES))})")
    return [Picture(path.absolute()) for path in paths]


def run_demo(
    settings: Settings,
    pictures: Sequence[Picture],
    video: DemoVideo | None,
    log: Path,
    advance: Callable[[], None],
) -> DemoResult:
    """Start a worker, submit pictures and video, wait for the captions, stop the worker.

    Args:
        settings: those of the environment, which the worker inherits.
        pictures: to be captioned.
        video: to be captioned, too.
        log: file the worker's output goes to.
        advance: called for each job that has ended.

    Raises:
        CaptionerError: the worker ended before its work did; the text says why.
    """
    requests = [_request(picture, settings.generation) for picture in pictures]
    if video:
        requests.append(_video_request(video, settings.generation))
    exit_codes: list[int] = []
    with Jobs(settings) as jobs, _worker(log, exit_codes) as worker:
        job_ids = [submission.job.id for submission in jobs.submit_all(requests)]
        ended: Mapping[UUID, Job] = {}
        while len(ended) < len(job_ids):
            ended = dict(ended)
            waiting = [job_id for job_id in job_ids if job_id not in ended]
            for job in jobs.wait_each(waiting, timeout_seconds=1):
                ended[job.id] = job
                advance()
            if worker.poll() is not None and len(ended) < len(job_ids):
                raise CaptionerError(
                    f"the worker ended with code {worker.returncode}: {_last_line(log)}"
                )
    found = [ended[job_id] for job_id in job_ids]
    video_job = found.pop() if video else None
    return DemoResult(pictures, found, exit_codes[0], video, video_job)


def _request(picture: Picture, defaults: GenerationSettings) -> CaptionRequest:
    options = GenerationOptions(prompt=picture.prompt, **defaults.model_dump())
    return CaptionRequest(source=Source(str(picture.path)), options=options)


def _video_request(video: DemoVideo, defaults: GenerationSettings) -> CaptionRequest:
    return CaptionRequest(
        source=Source(str(video.path)),
        options=GenerationOptions(**defaults.model_dump()),
        video=VideoOptions(strategy="interval", interval_seconds=FILM_INTERVAL_SECONDS),
        lane=Lane.VIDEO,
    )


@contextmanager
def _worker(log: Path, exit_codes: list[int]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  # our own command, no shell
            [sys.executable, "-m", "captioner", "worker", "--name", f"demo{os.getpid()}@%h"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                exit_codes.append(process.wait(STOP_SECONDS))
            except subprocess.TimeoutExpired:
                process.kill()
                exit_codes.append(process.wait())


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    critical = [line for line in lines if "CRITICAL" in line]
    return (critical or lines or ["it printed nothing"])[-1]

"""A long video while it runs: how far it is, and that it can be stopped."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select

from captioner.domain import Job, JobState, Lane
from captioner.jobs import Jobs
from captioner.store import upgrade
from captioner.store.models import FrameRow
from distributions import install
from faults.house import children, lives
from processes import Worker, captioner, environment, running_worker, settings_of, wait_until
from videos import plain, write_video

#: Takes its time for every frame, and notes each.
SLOW_PLUGIN = """
import os
from pathlib import Path
from captioner import hookimpl
from captioner.testing import load_faulty_model

@hookimpl
def provide_captioner(settings):
    return load_faulty_model(32, seconds_per_batch=0.5, notes=Path(os.environ["NOTES"]))
"""
FRAMES = 80


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shades = (plain((40 + 60 * (n % 3), 40 + 50 * (n % 4), 90)) for n in range(FRAMES))
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", shades, rate=1)


@pytest.fixture
def env(tmp_path: Path, film: Path, redis_url: str, database_url: str) -> dict[str, str]:
    upgrade(database_url)
    install(tmp_path, "slow", SLOW_PLUGIN)
    env = environment(
        tmp_path,
        BROKER__URL=redis_url,
        DATABASE__URL=database_url,
        MEDIA__ALLOWED_ROOTS=str(film.parent),
        ENGINE__MAX_BATCH="1",
        WORKER__HEARTBEAT_SECONDS="30",  # so that cancelling is noticed by the frames alone
    )
    return env | {"PYTHONPATH": str(tmp_path), "NOTES": str(tmp_path / "notes")}


@pytest.fixture
def worker(tmp_path: Path, env: dict[str, str]) -> Iterator[Worker]:
    with running_worker(tmp_path, env) as worker:
        yield worker


@pytest.fixture
def jobs(env: dict[str, str]) -> Iterator[Jobs]:
    with Jobs(settings_of(env)) as jobs:
        yield jobs


def started(jobs: Jobs, film: Path) -> Job:
    """A job that has some frames."""
    video = {"strategy": "fps", "fps": 1}
    job = jobs.submit(str(film), video=video, lane=Lane.VIDEO)
    wait_until(lambda: (jobs.get(job.id).frames_done or 0) > 0)
    return jobs.get(job.id)


def kept(env: dict[str, str]) -> int:
    engine = create_engine(env["CAPTIONER_DATABASE__URL"])
    with engine.connect() as connection:
        count = connection.scalar(select(func.count()).select_from(FrameRow)) or 0
    engine.dispose()
    return count


@pytest.mark.long
@pytest.mark.usefixtures("worker")
def test_how_far_it_is_is_shown(jobs: Jobs, env: dict[str, str], film: Path) -> None:
    job = started(jobs, film)
    assert job.frames_total == FRAMES
    job_id = str(job.id)
    # All at once: commands take seconds to start, and the film goes on meanwhile.
    with ThreadPoolExecutor(4) as threads:
        seen = threads.submit(watched, "wait", job_id, env=env)
        commands = [["status", job_id], ["status", job_id, "--json"], ["list"]]
        run = [threads.submit(captioner, *command, env=env) for command in commands]
        shown, as_json, listed = (one.result().stdout for one in run)
    assert re.search(rf"frames +\d+ of {FRAMES}\b", shown)
    (told,) = json.loads(as_json)
    assert 0 < told["frames_done"] < told["frames_total"] == FRAMES
    assert re.search(rf"\d+ of {FRAMES} frames", listed)
    assert "film.mp4" in (bar := seen.result())
    assert len({int(n) for n in re.findall(rf"(\d+)/{FRAMES}\b", bar)}) >= 3
    ended = jobs.get(job.id)
    assert (ended.state, ended.frames_done) == (JobState.SUCCEEDED, FRAMES)
    assert re.search(rf"frames +{FRAMES}\b", captioner("status", str(job.id), env=env).stdout)


def watched(*arguments: str, env: dict[str, str]) -> str:
    """What a person sees on a terminal."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "captioner", *arguments],
        env=env | {"TERM": "xterm", "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    try:
        while data := os.read(ours, 65536):
            seen += data
    except OSError:  # Linux says that the other side is closed
        pass
    finally:
        os.close(ours)
        assert process.wait(60) == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())


@pytest.mark.long
def test_canceling_stops_it_within_seconds(
    jobs: Jobs, env: dict[str, str], film: Path, worker: Worker
) -> None:
    job = started(jobs, film)
    decoders = children(worker.process.pid, "decoder")
    assert decoders
    assert kept(env) > 0
    asked = time.monotonic()
    assert captioner("cancel", str(job.id), env=env).returncode == 0
    assert kept(env) == 0
    wait_until(lambda: not any(map(lives, decoders)))
    wait_until(lambda: "the result is not wanted any more" in worker.log)
    print(f"\ncanceled to stopped, the command included: {time.monotonic() - asked:.1f} s")
    assert time.monotonic() - asked < 15
    captioned = len(Path(env["NOTES"]).read_text().splitlines())
    assert captioned < FRAMES
    # It takes pictures and videos as before, and the canceled one stays as it is.
    after = jobs.submit(str(film), video={"frames": 2}, lane=Lane.VIDEO)
    assert jobs.wait(after.id, timeout_seconds=60).state is JobState.SUCCEEDED
    now = len(Path(env["NOTES"]).read_text().splitlines())
    assert now <= captioned + 2 + 2  # and the two batches that the engine had
    ended = jobs.get(job.id)
    assert (ended.state, ended.attempt, kept(env)) == (JobState.CANCELED, 1, 0)
    assert worker.stop() == 0

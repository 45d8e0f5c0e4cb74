"""The embedded service, too, leaves room for pictures however many videos wait."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from captioner.domain import JobState, Lane
from captioner.jobs import Jobs
from captioner.store import upgrade
from distributions import install
from processes import environment, running_worker, settings_of, wait_until

#: Videos that go on until there is a file `release` beside them.
PLUGIN = """
import time
import numpy as np
from captioner import Frame, hookimpl
from captioner.testing import FakeCaptionModel

@hookimpl
def provide_captioner(settings):
    return FakeCaptionModel(8)

@hookimpl
def sample_frames(media, image_size):
    if media.path.suffix == ".held":
        return held(media.path, image_size)

def held(path, size):
    while not path.with_name("release").exists():
        time.sleep(0.05)
    yield Frame(np.full((size, size, 3), 7, np.uint8), 0.0)
"""


@pytest.mark.long
def test_pictures_overtake_videos(tmp_path: Path) -> None:
    install(tmp_path, "held", PLUGIN)
    env = environment(tmp_path, WORKER__CONCURRENCY="4", MEDIA__DECODE_TIMEOUT_SECONDS="600")
    env |= {"PYTHONPATH": str(tmp_path)}
    settings = settings_of(env)
    Image.new("RGB", (9, 9), (7, 8, 9)).save(tmp_path / "a.png")
    settings.data_dir.mkdir(parents=True)
    upgrade(settings.database_url)
    with Jobs(settings) as jobs:
        videos = []
        for number in range(16):
            path = tmp_path / f"{number}.held"
            path.write_bytes(b"x")
            videos.append(jobs.submit(str(path), lane=Lane.VIDEO).id)
        with running_worker(tmp_path, env) as worker:
            wait_until(lambda: jobs.count_by_state()[JobState.PROCESSING] == 1)
            for _ in range(8):
                job = jobs.submit(str(tmp_path / "a.png"))
                assert jobs.wait(job.id, timeout_seconds=60).state is JobState.SUCCEEDED
                assert jobs.count_by_state()[JobState.PROCESSING] == 1
            (tmp_path / "release").touch()
            ended = [jobs.wait(job_id, timeout_seconds=60) for job_id in videos]
            assert worker.stop() == 0
    assert {(job.state, job.attempt) for job in ended} == {(JobState.SUCCEEDED, 1)}

"""Operators watch Flower: it must show workers, and tasks with short, readable arguments."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from captioner.demo.scenes import draw, scenes
from captioner.domain import JobState, Lane
from captioner.jobs import Jobs
from captioner.store import upgrade
from distributions import install
from hosts import HeldPictures
from processes import environment, running_worker, settings_of
from servers import free_port
from videos import plain, write_video

PATIENCE_SECONDS = 60


@contextmanager
def running_flower(env: dict[str, str], folder: Path) -> Iterator[str]:
    port = free_port()
    log = folder / "flower.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", "captioner", "flower"),
                *("--address=127.0.0.1", f"--port={port}"),
            ],
            env=env | {"FLOWER_UNAUTHENTICATED_API": "true"},
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def post(url: str, **fields: str) -> Any:
    """Use one of Flower's buttons."""
    body = urllib.parse.urlencode(fields).encode()
    with urllib.request.urlopen(url, data=body, timeout=10) as answer:
        return json.load(answer)


def eventually(url: str, wanted: Any) -> Any:
    """Ask until `wanted(answer)`; Flower starts slowly and learns by and by."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    answer = None
    while time.monotonic() < deadline:
        try:
            answer = get(url)
        except OSError:
            answer = None
        if answer and wanted(answer):
            return answer
        time.sleep(0.2)
    raise AssertionError(f"{url} answered {answer}")


@pytest.mark.long
def test_flower_lists_the_worker_and_short_arguments(
    tmp_path: Path, redis_url: str, sqlite_url: str
) -> None:
    upgrade(sqlite_url)
    env = environment(tmp_path, BROKER__URL=redis_url, DATABASE__URL=sqlite_url)
    env["PATH"] = os.environ["PATH"]
    draw(next(iter(scenes(3, 1))), 128).save(tmp_path / "a.png")
    with (
        running_flower(env, tmp_path) as flower,
        Jobs(settings_of(env)) as jobs,
        running_worker(tmp_path, env) as worker,
    ):
        workers = eventually(f"{flower}/api/workers?refresh=1", lambda a: len(a) == 1)
        (name,) = workers
        assert name.startswith("captioner@")
        job = jobs.wait(jobs.submit(str(tmp_path / "a.png")).id, timeout_seconds=60)
        tasks = eventually(
            f"{flower}/api/tasks",
            lambda a: any(task["state"] == "SUCCESS" for task in a.values()),
        )
        assert worker.stop() == 0
    (task,) = tasks.values()
    assert task["name"] == "captioner.caption"
    assert task["args"] == "()"
    assert task["kwargs"] == str(job.id)
    assert task["result"] == "'1 succeeded'"
    assert task["worker"] == name


SLOW_PLUGIN = """
from captioner import hookimpl
from captioner.testing import load_faulty_model

@hookimpl
def provide_captioner(settings):
    return load_faulty_model(32, seconds_per_batch=0.4)
"""


@pytest.mark.long
def test_flower_shows_how_far_a_video_is(tmp_path: Path, redis_url: str, sqlite_url: str) -> None:
    upgrade(sqlite_url)
    install(tmp_path, "slow", SLOW_PLUGIN)
    env = environment(
        tmp_path, BROKER__URL=redis_url, DATABASE__URL=sqlite_url, ENGINE__MAX_BATCH="1"
    )
    env |= {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    shades = (plain((40 + 60 * (n % 3), 40 + 50 * (n % 4), 90)) for n in range(120))
    film = write_video(tmp_path / "film.mp4", shades, rate=1)
    with (
        running_flower(env, tmp_path) as flower,
        Jobs(settings_of(env)) as jobs,
        running_worker(tmp_path, env) as worker,
    ):
        (name,) = eventually(f"{flower}/api/workers?refresh=1", lambda a: len(a) == 1)
        every_fourth = {"strategy": "interval", "interval_seconds": 4}
        job = jobs.submit(str(film), video=every_fourth, lane=Lane.VIDEO)
        seen = eventually(f"{flower}/api/tasks", lambda a: states(a) == ["PROGRESS"])
        ((task_id, task),) = seen.items()
        assert re.fullmatch(r"\d+ of 30 frames", task["result"])
        assert task["kwargs"] == str(job.id)
        assert (task["worker"], task["started"] > 0) == (name, True)
        told = jobs.get(job.id)
        assert (told.frames_done or 0) > 0
        assert told.frames_total == 30
        seen = eventually(f"{flower}/api/tasks", lambda a: states(a) == ["SUCCESS"])
        assert seen[task_id]["result"] == "'1 succeeded'"
        # One that was revoked does not seem to go on.
        every_second = {"strategy": "interval", "interval_seconds": 1}
        second = jobs.submit(str(film), video=every_second, lane=Lane.VIDEO)
        seen = eventually(f"{flower}/api/tasks", lambda a: "PROGRESS" in states(a))
        (running,) = [one for one in seen if one != task_id]
        post(f"{flower}/api/task/revoke/{running}", terminate="true")
        assert jobs.wait(second.id, timeout_seconds=60).state is JobState.CANCELED
        seen = eventually(f"{flower}/api/tasks", lambda a: "PROGRESS" not in states(a))
        assert seen[running]["result"] == "'1 canceled'"
        assert worker.stop() == 0


def states(tasks: dict[str, Any]) -> list[str]:
    return [task["state"] for task in tasks.values()]


@pytest.mark.long
def test_flowers_controls_work(tmp_path: Path, redis_url: str, sqlite_url: str) -> None:
    upgrade(sqlite_url)
    env = environment(
        tmp_path, BROKER__URL=redis_url, DATABASE__URL=sqlite_url, WORKER__CONCURRENCY="2"
    )
    env["PATH"] = os.environ["PATH"]
    draw(next(iter(scenes(3, 1))), 128).save(tmp_path / "a.png")
    with (
        HeldPictures((tmp_path / "a.png").read_bytes()) as held,
        running_flower(env, tmp_path) as flower,
        Jobs(settings_of(env)) as jobs,
        running_worker(tmp_path, env) as worker,
    ):
        (name,) = eventually(f"{flower}/api/workers?refresh=1", lambda a: len(a) == 1)

        def threads() -> int:
            (seen,) = get(f"{flower}/api/workers?refresh=1&workername={name}").values()
            return int(seen["stats"]["pool"]["max-concurrency"])

        assert "Shrinking" in str(post(f"{flower}/api/worker/pool/shrink/{name}", n="1"))
        assert threads() == 1
        assert "Growing" in str(post(f"{flower}/api/worker/pool/grow/{name}", n="1"))
        assert threads() == 2

        running = [jobs.submit(f"{held.url}/{number}") for number in range(2)]
        held.next_asked()
        held.next_asked()
        queued = jobs.submit(f"{held.url}/queued")
        # Sent by us, received by nobody yet.
        tasks = eventually(
            f"{flower}/api/tasks",
            lambda a: {str(running[0].id), str(queued.id)} <= {t["kwargs"] for t in a.values()},
        )
        by_job = {task["kwargs"]: task_id for task_id, task in tasks.items()}
        first = by_job[str(running[0].id)]
        eventually(f"{flower}/api/tasks", lambda a: a[first]["state"] == "STARTED")
        post(f"{flower}/api/task/revoke/{by_job[str(queued.id)]}")
        post(f"{flower}/api/task/revoke/{first}", terminate="true")
        assert jobs.wait(running[0].id, timeout_seconds=60).state is JobState.CANCELED
        held.release.set()
        assert jobs.wait(running[1].id, timeout_seconds=60).state is JobState.SUCCEEDED
        assert jobs.wait(queued.id, timeout_seconds=60).state is JobState.CANCELED
        last = jobs.submit(f"{held.url}/last")
        assert jobs.wait(last.id, timeout_seconds=60).state is JobState.SUCCEEDED
        states = eventually(
            f"{flower}/api/tasks",
            lambda a: sum(task["state"] == "SUCCESS" for task in a.values()) == 2,
        )
        assert states[first]["state"] == "REVOKED"
        post(f"{flower}/api/worker/shutdown/{name}")
        assert worker.process.wait(PATIENCE_SECONDS) == 0
    assert "Traceback" not in worker.log

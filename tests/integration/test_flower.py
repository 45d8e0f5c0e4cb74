"""Operators watch Flower: it must show workers, and tasks with short, readable arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from captioner.demo.scenes import draw, scenes
from captioner.jobs import Jobs
from captioner.store import upgrade
from processes import environment, running_worker, settings_of
from servers import free_port

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

"""Plugins in real workers: the good, the raising, the hanging and the slow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from captioner import ErrorCode, JobState
from captioner.jobs import Jobs
from captioner.store import upgrade
from distributions import install
from processes import captioner, environment, running_worker, settings_of, wait_until
from servers import free_port

ROOT = Path(__file__).parents[2]

MODEL = """
from captioner import hookimpl
from captioner.testing import FakeCaptionModel

@hookimpl
def provide_captioner(settings):
    return FakeCaptionModel()
"""
RAISING = """
from captioner import hookimpl

@hookimpl
def worker_ready(settings):
    raise RuntimeError("not ready at all")

@hookimpl
def observe(event):
    raise RuntimeError("observer down")
"""
HANGING = """
import threading
from captioner import hookimpl

@hookimpl
def worker_ready(settings):
    pass

@hookimpl
def observe(event):
    threading.Event().wait()

@hookimpl
def worker_stopping():
    raise RuntimeError("never called")
"""
SLOW = """
import time
from captioner import hookimpl

heard = 0

@hookimpl
def observe(event):
    global heard
    heard += 1
    time.sleep(0.02)

@hookimpl
def worker_stopping():
    print("slow has heard of", heard, "jobs", flush=True)
"""
#: Fails the job of one picture, and leaves the others alone.
CHOOSY = """
from captioner import hookimpl

@hookimpl
def process_caption(caption, request):
    if request.metadata.get("choosy"):
        raise ValueError("not this one")

@hookimpl
def sample_frames(media, request):
    if request.metadata.get("torn"):
        raise OSError("torn")
"""
JOBS = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a picture, and a plugin folder on the workers' path."""
    Image.new("RGB", (20, 10), (10, 20, 30)).save(tmp_path / "a.png")
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    install(plugins, "a_model", MODEL)
    return tmp_path


@pytest.fixture
def env(folder: Path, redis_url: str, database_url: str) -> dict[str, str]:
    upgrade(database_url)
    return environment(
        folder,
        BROKER__URL=redis_url,
        DATABASE__URL=database_url,
        WORKER__HEARTBEAT_SECONDS="0.2",
    ) | {"PYTHONPATH": str(folder / "plugins")}


@pytest.fixture
def jobs(env: dict[str, str]) -> Iterator[Jobs]:
    with Jobs(settings_of(env)) as jobs:
        yield jobs


def counted(env: dict[str, str]) -> dict[tuple[str, str], tuple[int, str]]:
    """What `captioner plugins` says went wrong."""
    ran = captioner("plugins", "--json", env=env)
    assert ran.returncode == 0, ran.stderr
    return {
        (info["name"], error["hook"]): (error["errors"], error["last_error"])
        for info in json.loads(ran.stdout)
        for error in info["errors"]
    }


@pytest.mark.long
def test_plugins_that_raise_hang_or_are_slow_harm_no_job(
    folder: Path, env: dict[str, str], jobs: Jobs
) -> None:
    for name, code in (("raising", RAISING), ("hanging", HANGING), ("slow", SLOW)):
        install(folder / "plugins", name, code)
    submitted = [jobs.submit(str(folder / "a.png")).id for _ in range(JOBS)]
    with running_worker(folder, env) as worker:
        ended = list(jobs.wait_each(submitted, timeout_seconds=120))
        assert [job.state for job in ended] == [JobState.SUCCEEDED] * JOBS, worker.log
        # While it runs, without waiting for its end.
        wait_until(lambda: counted(env).get(("raising", "observe"), (0, ""))[0] == JOBS)
        assert worker.stop() == 0
    assert "plugin 'raising' failed in observe: RuntimeError: observer down" in worker.log
    assert worker.log.count("RuntimeError: observer down") < JOBS  # at most one a minute
    assert "plugin 'hanging' failed in observe: busy with it when the worker ended" in worker.log
    assert f"slow has heard of {JOBS} jobs" in worker.log
    assert counted(env) == {
        ("raising", "worker_ready"): (1, "RuntimeError: not ready at all"),
        ("raising", "observe"): (JOBS, "RuntimeError: observer down"),
        ("hanging", "observe"): (1, "busy with it when the worker ended, and left behind"),
    }
    table = captioner("plugins", env=env)
    assert re.search(
        rf"raising .* enabled +observe, worker_ready +observe: {JOBS} times, last at ", table.stdout
    )


@pytest.mark.long
def test_a_hanging_plugin_delays_the_end_by_seconds(folder: Path, env: dict[str, str]) -> None:
    hanging = HANGING.replace("    pass", "    threading.Event().wait()")
    install(folder / "plugins", "hanging", hanging)
    with running_worker(folder, env) as worker:  # it begins all the same
        started = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - started < 20
    assert counted(env)["hanging", "worker_ready"][0] == 2  # at the beginning and at the end


@pytest.mark.long
def test_threads_of_a_plugin_do_not_keep_a_worker_that_has_ended(
    folder: Path, env: dict[str, str]
) -> None:
    wait = "import threading; wait = threading.Event().wait"
    begins = f"{wait}; threading.Thread(target=wait, name='mine').start()"
    install(folder / "plugins", "threads", f"{begins}\n{RAISING}")
    with running_worker(folder, env) as worker:
        assert worker.stop() == 0
    assert "the worker ends without threads that go on: mine" in worker.log


@pytest.mark.long
def test_providers_that_fail_are_counted_also_those_in_decoders(
    folder: Path, env: dict[str, str], jobs: Jobs
) -> None:
    install(folder / "plugins", "choosy", CHOOSY)
    picture = str(folder / "a.png")
    chosen = [jobs.submit(picture, metadata={"choosy": True}).id for _ in range(3)]
    torn = [jobs.submit(picture, metadata={"torn": True}).id for _ in range(2)]
    well = [jobs.submit(picture).id for _ in range(5)]
    with running_worker(folder, env) as worker:
        ended = {
            job.id: job for job in jobs.wait_each([*chosen, *torn, *well], timeout_seconds=120)
        }
        assert worker.stop() == 0
    for job_id in chosen + torn:
        failure = ended[job_id].failure
        assert failure
        assert failure.code is ErrorCode.PLUGIN_FAILED
        assert failure.message.startswith("plugin 'choosy' failed in ")
    assert all(ended[job_id].state is JobState.SUCCEEDED for job_id in well)
    assert counted(env) == {
        ("choosy", "process_caption"): (3, "ValueError: not this one"),
        ("choosy", "sample_frames"): (2, "OSError: torn"),
    }


@pytest.mark.long
def test_metrics_tell_of_jobs_batches_errors_and_what_waits(
    folder: Path, env: dict[str, str], jobs: Jobs
) -> None:
    install(folder / "plugins", "raising", RAISING)
    port = free_port()

    def metrics() -> dict[str, float]:
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if line.startswith("captioner_"))
        return {name: float(value) for name, _, value in pairs}

    with running_worker(folder, env | {"CAPTIONER_METRICS_PORT": str(port)}) as worker:
        submitted = [jobs.submit(str(folder / "a.png")).id for _ in range(JOBS)]
        assert len(list(jobs.wait_each(submitted, timeout_seconds=120))) == JOBS
        wait_until(lambda: metrics().get("captioner_pictures_total") == JOBS)
        wait_until(
            lambda: (
                metrics().get('captioner_plugin_errors_total{hook="observe",plugin="raising"}')
                == JOBS
            )
        )
        found = metrics()
        assert worker.stop() == 0
    assert found['captioner_jobs_total{error_code="",state="succeeded"}'] == JOBS
    assert found['captioner_stage_seconds_count{stage="engine"}'] == JOBS
    assert 1 <= found["captioner_batches_total"] <= JOBS
    assert found["captioner_engine_busy_seconds_total"] > 0
    assert found["captioner_engine_restarts_total"] == 0
    assert found['captioner_unfinished_jobs{state="queued"}'] == 0


# --- A distribution of its own --------------------------------------------------------------------


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip has installed the example into."""
    folder = tmp_path_factory.mktemp("example")
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)),
            # Nothing is fetched: what builds it is here, and so is captioner.
            *("--no-deps", "--no-build-isolation", "--no-index"),
            str(ROOT / "tests" / "example_plugin"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.mark.long
def test_the_example_is_installed_listed_and_works(
    example: Path, folder: Path, env: dict[str, str], jobs: Jobs
) -> None:
    written = folder / "events.jsonl"
    env = env | {
        "PYTHONPATH": os.pathsep.join([str(folder / "plugins"), str(example)]),
        "CAPTIONER_EXAMPLE_FILE": str(written),
    }
    (info,) = [
        one
        for one in json.loads(captioner("plugins", "--json", env=env).stdout)
        if one["name"] == "example"
    ]
    assert (info["distribution"], info["version"], info["state"]) == (
        "captioner-example",
        "0.3.0",
        "enabled",
    )
    assert set(info["hooks"]) == {
        "open_source",
        "process_caption",
        "event_targets",
        "deliver_event",
    }
    asked = jobs.submit("example://colour/40/50/60", metadata={"example": True})
    silent = jobs.submit("example://colour/70/80/90")
    wrong = jobs.submit("example://sound/1/2/3", metadata={"example": True})
    with running_worker(folder, env), running_worker(folder, env, *EVENTS):
        ended = {
            job.id: job
            for job in jobs.wait_each([asked.id, silent.id, wrong.id], timeout_seconds=120)
        }
        wait_until(lambda: written.exists() and len(written.read_text().splitlines()) == 2)
    assert ended[asked.id].caption == "mean colour 40 50 60, an example"
    assert ended[asked.id].captions[0].origin == "example"
    assert ended[asked.id].captions[0].alt_text == "Mean colour 40 50 60, an example"
    assert ended[silent.id].caption == "mean colour 70 80 90, an example"
    failure = ended[wrong.id].failure
    assert failure
    assert (failure.code, failure.message) == (
        ErrorCode.FETCH_FAILED,
        "write example://colour/RED/GREEN/BLUE",
    )
    delivered = [json.loads(line) for line in written.read_text().splitlines()]
    assert {line["type"]: line["caption"] for line in delivered} == {
        "caption.succeeded": "mean colour 40 50 60, an example",
        "caption.failed": None,
    }


EVENTS = ("captioner", "worker", "--queues", "events")

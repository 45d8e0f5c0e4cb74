"""`bench queue`: what it refuses, and how it counts. What it measures is an integration test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from captioner.bench import null_model
from captioner.bench.plan import Round, Side
from captioner.bench.processes import running
from captioner.bench.queue import summary
from captioner.domain import CaptionRequest, Media
from captioner.options import GenerationOptions
from captioner.settings import ModelSettings, Settings
from captioner.source import Source
from processes import captioner, environment, wait_until

REDIS = ["--broker", "redis://127.0.0.1:1/0"]
POSTGRES = ["--database", "postgresql://nobody:secret@127.0.0.1:1/nothing"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "CAPTIONER_BROKER__URL"),
        (POSTGRES, "CAPTIONER_BROKER__URL"),
        ([*REDIS], "CAPTIONER_DATABASE__URL"),
        ([*REDIS, "--database", "sqlite:///jobs.sqlite3"], "CAPTIONER_DATABASE__URL"),
        (["--jobs", "0"], "--jobs"),
        (["--rounds", "0"], "--rounds"),
        (["--json", "nowhere/report.json"], "there is no folder"),
    ],
)
def test_a_wrong_option_is_one_clear_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = captioner("bench", "queue", *arguments, env=environment(tmp_path), cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr


def test_a_server_that_is_away_is_one_clear_line(tmp_path: Path) -> None:
    result = captioner("bench", "queue", *REDIS, *POSTGRES, env=environment(tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    assert "broker cannot be reached" in result.stderr.splitlines()[-1]
    assert "secret" not in result.stderr


def a_round(
    jobs: int = 100,
    seconds: float = 1.0,
    *,
    cpu_seconds: float = 0.0,
    resident_bytes: int = 0,
    batches: int = 1,
    pictures: int = 0,
    busy_seconds: float = 0.0,
) -> Round:
    return Round(
        jobs=jobs,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        resident_bytes=resident_bytes,
        batches=batches,
        pictures=pictures,
        busy_seconds=busy_seconds,
    )


def test_medians_count_and_ratios_are_of_medians() -> None:
    noop = [a_round(seconds=seconds, cpu_seconds=0.05) for seconds in (1.0, 0.1, 0.5)]
    single = [
        a_round(seconds=2.0, cpu_seconds=cpu, batches=10, pictures=80, busy_seconds=0.5)
        for cpu in (0.1, 0.3, 9.0)
    ]
    chunked = [a_round(seconds=0.1, resident_bytes=size) for size in (100, 900, 130)]
    found = {Side.NOOP: noop, Side.SINGLE: single, Side.CHUNKED: chunked}
    report = summary(found, max_batch=32)
    assert report["noop_tasks_per_second"] == pytest.approx(200)
    assert report["single_jobs_per_second"] == pytest.approx(50)
    assert report["single_ratio"] == pytest.approx(0.25)
    assert report["chunked_ratio"] == pytest.approx(5)
    assert report["cpu_milliseconds_per_job"] == pytest.approx(
        {"noop": 0.5, "single": 3.0, "chunked": 0.0}
    )
    assert report["batch_fill"] == pytest.approx(0.25)
    assert report["engine_share"] == pytest.approx(0.25)
    assert report["memory"] == {
        "jobs": 600, "resident_bytes_early": 100, "resident_bytes_late": 130,
        "resident_bytes_growth": 30,
    }  # fmt: skip
    assert len(report["rounds"]) == 3


def test_the_null_model_is_there_only_for_those_who_name_it(tmp_path: Path) -> None:
    def provided(model_id: str) -> null_model.NullModel | None:
        return null_model.provide_captioner(Settings(model=ModelSettings(id=model_id)))

    model = provided("null-16")
    assert model is not None
    assert model.info.image_size == 16
    assert [provided(name) for name in ("demo", "null-", "a/null-16")] == [None] * 3
    request = CaptionRequest(source=Source(str(tmp_path)))
    media = Media(tmp_path / "picture.null", "picture.null")
    frames = null_model.sample_frames(media, request, 16)
    assert frames is not None
    assert len(model.generate([frames[0].pixels] * 3, [GenerationOptions()] * 3)) == 3
    assert null_model.sample_frames(Media(tmp_path / "a.jpeg", "a"), request, 16) is None


BUSY_CHILD = """
import subprocess, sys, time
work = "sum(range(20_000_000))"
subprocess.run([sys.executable, "-c", work], check=True)
child = subprocess.Popen([sys.executable, "-c", f"{work}; print('worked', flush=True); input()"],
                         stdin=subprocess.PIPE)
time.sleep(1000)
"""


def test_what_children_use_counts_also_when_they_have_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    alone = subprocess.run(
        [sys.executable, "-c", "import time; sum(range(20_000_000)); print(time.process_time())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    with running(["-c", BUSY_CHILD], {}, log) as worker:
        wait_until(lambda: "worked" in log.read_text())
        # One that has ended and one that waits; the parent itself does next to nothing.
        assert worker.cpu_seconds > 1.4 * float(alone.stdout)
        assert worker.resident_bytes > 2**20
    assert worker.process.returncode is not None

"""`bench queue` on real servers: it measures, and leaves nothing behind. Never how fast."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from processes import captioner, environment

RATES = ("noop_tasks_per_second", "single_jobs_per_second", "chunked_jobs_per_second")


def measure(tmp_path: Path, redis_url: str, postgres_url: str, *arguments: str) -> Any:
    result = captioner(
        "bench", "queue", "--broker", redis_url, "--database", postgres_url, "--json", "q.json",
        *arguments, env=environment(tmp_path, WORKER__CONCURRENCY="8"), cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "round 1, single" in result.stderr
    assert "no-op task" in result.stdout
    return json.loads((tmp_path / "q.json").read_text())


def databases(postgres_url: str) -> set[str]:
    plain = postgres_url.replace("postgresql+psycopg://", "postgresql://", 1)
    with psycopg.connect(plain) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}


@pytest.mark.long
@pytest.mark.parametrize("decode", [False, True])
def test_it_measures_both_sides_and_leaves_nothing(
    tmp_path: Path, redis_url: str, postgres_url: str, decode: bool
) -> None:
    before = databases(postgres_url)
    with redis.Redis.from_url(redis_url) as client:
        client.set("captioner:somebody", "else")
        report = measure(
            tmp_path, redis_url, postgres_url, "--jobs", "70", "--rounds", "1",
            *(["--decode"] if decode else ["--finished", "500"]),
        )  # fmt: skip
        assert client.keys("*") == [b"captioner:somebody"]
    assert databases(postgres_url) == before
    assert all(report[rate] > 0 for rate in RATES)
    assert report["single_ratio"] == pytest.approx(
        report["single_jobs_per_second"] / report["noop_tasks_per_second"]
    )
    assert set(report["cpu_milliseconds_per_job"]) == {"noop", "single", "chunked"}
    assert min(report["cpu_milliseconds_per_job"].values()) >= 0
    assert report["cpu_milliseconds_per_job"]["single"] > 0
    assert 0 < report["batch_fill"] <= 1
    assert 0 <= report["engine_share"] <= 1
    assert report["memory"]["jobs"] == 140
    assert report["memory"]["resident_bytes_late"] > 2**20
    assert {"cpu", "cores", "load_average"} <= set(report["hardware"])
    assert {"captioner", "celery", "redis", "postgresql"} <= set(report["versions"])
    assert (report["jobs"], report["decode"]) == (70, decode)


@pytest.mark.long
@pytest.mark.long
def test_told_to_end_it_leaves_nothing(tmp_path: Path, redis_url: str, postgres_url: str) -> None:
    before = databases(postgres_url)
    with subprocess.Popen(
        [sys.executable, "-m", "captioner", "bench", "queue", "--broker", redis_url,
         "--database", postgres_url],
        env=environment(tmp_path), stderr=subprocess.PIPE, text=True,
    ) as bench:  # fmt: skip
        assert bench.stderr
        assert any("round 1, noop" in line for line in bench.stderr)
        assert databases(postgres_url) > before
        children = Path(f"/proc/{bench.pid}/task/{bench.pid}/children").read_text()
        workers = [Path("/proc", pid) for pid in children.split()]
        assert len(workers) == 2
        bench.terminate()
        assert bench.wait(60) == 128 + signal.SIGTERM
    assert not any(worker.exists() for worker in workers)
    assert databases(postgres_url) == before
    with redis.Redis.from_url(redis_url) as client:
        assert not client.keys("*")


def test_jobs_that_fail_are_no_result(tmp_path: Path, redis_url: str, postgres_url: str) -> None:
    before = databases(postgres_url)
    result = captioner(
        "bench", "queue", "--broker", redis_url, "--database", postgres_url, "--jobs", "4",
        "--decode", cwd=tmp_path,
        env=environment(tmp_path, WORKER__CONCURRENCY="2", MEDIA__MAX_IMAGE_PIXELS="16"),
    )  # fmt: skip
    assert result.returncode == 1
    assert "0 of 8 jobs succeeded" in result.stderr.splitlines()[-1]
    assert databases(postgres_url) == before

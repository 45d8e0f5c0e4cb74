"""`bench videos` on real servers: it measures, and leaves nothing behind. Never how fast."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import redis

from captioner.demo.films import random_film, write_film
from processes import captioner, environment


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    for seed in (1, 2):
        write_film(random_film(seed), folder / f"film-{seed}.mp4")
    (folder / "notes.txt").write_text("no video")
    return folder


@pytest.mark.long
def test_it_measures_and_leaves_nothing(
    tmp_path: Path, folder: Path, redis_url: str, postgres_url: str
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set("captioner:somebody", "else")
        result = captioner(
            "bench", "videos", str(folder), "--broker", redis_url, "--database", postgres_url,
            "--json", "v.json", "--frames", "6", "--together", "5", cwd=tmp_path,
            env=environment(tmp_path, WORKER__CONCURRENCY="8", ENGINE__MAX_BATCH="4"),
        )  # fmt: skip
        assert client.keys("*") == [b"captioner:somebody"]
    assert result.returncode == 0, result.stderr
    assert "film-1.mp4 alone" in result.stderr
    assert "5 together: " in result.stdout
    report = json.loads((tmp_path / "v.json").read_text())
    assert (report["model"]["id"], report["frames"], report["max_batch"]) == ("demo", 6, 4)
    assert set(report["model"]) == {"id", "dtype", "device"}
    assert [(row["file"], row["frames"]) for row in report["alone"]] == [
        ("film-1.mp4", 6), ("film-2.mp4", 6)
    ]  # fmt: skip
    for row in report["alone"]:
        assert 0 < row["decode_seconds"] < row["total_seconds"]
        assert row["sampling_share"] == row["decode_seconds"] / row["total_seconds"]
    assert 0 < report["sampling_share"] < 1
    many = report["together"]
    assert (many["videos"], many["frames"]) == (5, 30)
    # Three scenes each: the other frames look like the one before.
    assert 15 <= many["pictures"] < 30
    assert many["fewest_batches"] <= many["batches"] <= many["pictures"]
    assert many["batch_fill"] == many["pictures"] / many["batches"] / 4
    assert many["batch_fill"] <= many["best_batch_fill"] <= 1
    assert 0 < many["engine_share"] <= 1


@pytest.mark.long
def test_a_video_that_fails_is_no_result(
    tmp_path: Path, folder: Path, redis_url: str, postgres_url: str
) -> None:
    shutil.copy(folder / "notes.txt", folder / "a.mp4")
    result = captioner(
        "bench", "videos", str(folder), "--broker", redis_url, "--database", postgres_url,
        env=environment(tmp_path, WORKER__CONCURRENCY="2"),
    )  # fmt: skip
    assert result.returncode == 1
    assert "a job did not succeed: " in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "problem"),
    [(".", "there is no video in"), ("none", "does not exist")],
)
def test_what_cannot_be_measured_is_said_at_once(tmp_path: Path, name: str, problem: str) -> None:
    result = captioner("bench", "videos", str(tmp_path / name), env=environment(tmp_path))
    assert result.returncode == 2
    assert problem in result.stderr

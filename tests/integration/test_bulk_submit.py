"""Many jobs by one command: `captioner submit --from items.jsonl` and `captioner submit FOLDER`."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from captioner.demo.scenes import draw, scenes
from captioner.domain import Job, JobState, Lane
from captioner.jobs import Jobs
from captioner.store import upgrade
from processes import captioner, environment, running_worker, settings_of

SCENES = list(scenes(3, 5))


@pytest.fixture
def env(tmp_path: Path, redis_url: str, database_url: str) -> dict[str, str]:
    upgrade(database_url)
    return environment(tmp_path, BROKER__URL=redis_url, DATABASE__URL=database_url)


@pytest.fixture
def jobs(env: dict[str, str]) -> Iterator[Jobs]:
    with Jobs(settings_of(env)) as jobs:
        yield jobs


def all_jobs(jobs: Jobs) -> list[Job]:
    return jobs.list(limit=10_000)


def messages(redis_url: str) -> int:
    with redis.Redis.from_url(redis_url) as client:
        return int(client.llen("captioner:captions.bulk"))


def write(path: Path, items: list[Any]) -> Path:
    lines = [item if isinstance(item, str) else json.dumps(item) for item in items]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.long
def test_a_file_of_items_is_submitted_in_chunks_and_captioned(
    env: dict[str, str], jobs: Jobs, tmp_path: Path, redis_url: str
) -> None:
    for number, scene in enumerate(SCENES):
        draw(scene, 128).save(tmp_path / f"{number}.png")
    items: list[dict[str, Any]] = [
        {
            "source": f"{number % 5}.png",
            "client_key": f"item:{number}",
            "metadata": {"number": number},
            "options": {"num_beams": 1},
        }
        for number in range(150)
    ]
    items[7] |= {"prompt": "a photography of"}
    path = write(tmp_path / "items.jsonl", items)
    result = captioner("submit", "--from", str(path), "--json", env=env, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    submitted = [json.loads(line) for line in result.stdout.splitlines()]
    assert [job["metadata"]["number"] for job in submitted] == list(range(150))
    assert {job["lane"] for job in submitted} == {Lane.BULK}
    assert "150 submitted" in result.stderr
    assert messages(redis_url) == 3  # of 64, 64 and 22 jobs
    with running_worker(tmp_path, env) as worker:
        ended = list(jobs.wait_each([job["id"] for job in submitted], timeout_seconds=120))
        assert worker.stop() == 0
    assert {job.state for job in ended} == {JobState.SUCCEEDED}
    by_number = {job.metadata["number"]: job for job in ended}
    assert by_number[7].caption == f"a photography of {SCENES[2].caption}"
    assert by_number[6].caption == SCENES[1].caption


def test_submitting_again_submits_what_is_new(
    env: dict[str, str], jobs: Jobs, tmp_path: Path, redis_url: str
) -> None:
    items = [{"source": f"https://h/{n}.jpg", "client_key": f"k{n}"} for n in range(700)]
    path = write(tmp_path / "items.jsonl", items[:600])  # as if interrupted
    assert captioner("submit", "--from", str(path), env=env).returncode == 0
    first = messages(redis_url)
    text = "\n".join(json.dumps(item) for item in items)
    again = subprocess.run(
        [sys.executable, "-m", "captioner", "submit", "--from", "-"],
        input=text,
        env=env,
        text=True,
        capture_output=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert "100 submitted, 600 were there before" in again.stderr
    assert len(all_jobs(jobs)) == 700
    assert messages(redis_url) == first + 2  # of 64 and 36 jobs


def test_a_bad_line_is_one_clear_error_and_the_rest_goes_on(
    env: dict[str, str], jobs: Jobs, tmp_path: Path
) -> None:
    bad = {
        2: ("not json", "not JSON"),
        3: ("[1]", "expected a JSON object"),
        5: ({"source": "https://h/a.jpg", "sauce": 1}, "unknown field"),
        6: ({"prompt": "a"}, "source"),
        7: ({"source": "missing.png"}, "missing.png: no such file"),
        8: ({"source": "https://h/a.jpg", "options": {"num_beams": 99}}, "num_beams"),
        9: ({"source": "https://h/a.jpg", "metadata": [1]}, "metadata must be a JSON object"),
        10: ({"source": "https://h/a.jpg", "client_key": 5}, "client_key must be a text"),
        11: ({"source": "https://h/other.jpg", "client_key": "k"}, "another source"),
        12: ('{"source": "https://h/a.jpg", "metadata": {"x": NaN}}', "metadata"),
        13: ("x" * 2_000_000, "longer than"),
        15: ("[" * 100_000, "not JSON"),
    }
    good = {"source": "https://h/a.jpg"}
    items = [bad[number][0] if number in bad else good for number in range(1, 21)]
    items[0] = good | {"client_key": "k"}
    path = write(tmp_path / "items.jsonl", ["\ufeff" + json.dumps(items[0]), *items[1:], "", ""])
    result = captioner("submit", "--from", str(path), env=env, cwd=tmp_path)
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[-1] == f"{20 - len(bad)} submitted, {len(bad)} refused"
    said = {int(line.split(":")[0].removeprefix("line ")): line for line in lines[:-1]}
    assert said.keys() == bad.keys(), result.stderr
    for number, (_, words) in bad.items():
        assert words in said[number]
    assert len(all_jobs(jobs)) == 20 - len(bad)
    missing = captioner("submit", "--from", "nothing.jsonl", env=env, cwd=tmp_path)
    assert missing.returncode == 2
    assert missing.stderr == "captioner: nothing.jsonl: No such file or directory\n"


@pytest.mark.long
def test_a_folder_is_submitted_once_and_again_where_it_changed(
    env: dict[str, str], jobs: Jobs, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    (folder / "deep" / "er").mkdir(parents=True)
    for number, place in enumerate(["a.png", "deep/b.PNG", "deep/er/c.png"]):
        draw(SCENES[number], 64).save(folder / place)
    (folder / "notes.txt").write_text("not a picture")
    submit = ("submit", str(folder), "--metadata", '{"set": 1}')
    result = captioner(*submit, env=env)
    assert result.returncode == 0, result.stderr
    assert "3 submitted" in result.stderr
    assert {(Path(job.source.uri).name, job.lane) for job in all_jobs(jobs)} == {
        (name, Lane.BULK) for name in ("a.png", "b.PNG", "c.png")
    }
    assert all(job.metadata == {"set": 1} for job in all_jobs(jobs))
    assert "0 submitted, 3 were there before" in captioner(*submit, env=env).stderr
    draw(SCENES[3], 64).save(folder / "new.png")
    os.utime(folder / "a.png", (1, 1))
    assert "2 submitted, 2 were there before" in captioner(*submit, env=env).stderr
    other = captioner(*submit, "--prompt", "a drawing of", env=env)
    assert "4 submitted" in other.stderr
    assert len(all_jobs(jobs)) == 9


@pytest.mark.long
def test_a_folder_can_be_waited_for(env: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, scene in enumerate(SCENES):
        draw(scene, 128).save(folder / f"{number}.png")
    with running_worker(tmp_path, env) as worker:
        result = captioner("submit", str(folder), "--wait", "--json", "-o", "num_beams=1", env=env)
        assert worker.stop() == 0
    assert result.returncode == 0, result.stderr + worker.log
    captions = [job["captions"][0]["text"] for job in json.loads(result.stdout)]
    assert captions == [scene.caption for scene in SCENES]


def test_without_a_broker_all_rows_are_kept(
    env: dict[str, str], jobs: Jobs, tmp_path: Path
) -> None:
    away = env | {"CAPTIONER_BROKER__URL": "redis://127.0.0.1:1/0"}
    path = write(tmp_path / "items.jsonl", [{"source": f"https://h/{n}.jpg"} for n in range(2000)])
    result = captioner("submit", "--from", str(path), env=away)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("the broker cannot be reached") == 1
    kept = all_jobs(jobs)
    assert len(kept) == 2000
    assert all(job.dispatched_at is None for job in kept)


@pytest.mark.long
def test_memory_does_not_grow_with_the_file(tmp_path: Path, sqlite_url: str) -> None:
    upgrade(sqlite_url)
    env = environment(tmp_path, DATABASE__URL=sqlite_url, BROKER__URL="redis://127.0.0.1:1/0")

    def peak_kilobytes(count: int, run: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as file:
            for number in range(count):
                file.write(json.dumps({"source": f"https://h/{run}/{number}.jpg"}) + "\n")
        with subprocess.Popen(
            [sys.executable, "-m", "captioner", "submit", "--from", str(path)],
            env=env,
            stderr=subprocess.DEVNULL,
        ) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        assert isinstance(usage, resource.struct_rusage)
        return usage.ru_maxrss

    few, many = peak_kilobytes(2_000, 1), peak_kilobytes(40_000, 2)
    assert many < few + 8_000, (few, many)

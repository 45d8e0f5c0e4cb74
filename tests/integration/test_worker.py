"""Workers in processes of their own, on a real Redis and real databases."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import create_engine, text

from captioner.celery import create_app
from captioner.demo.scenes import draw, scenes
from captioner.domain import CaptionRequest, JobState
from captioner.jobs import Jobs
from captioner.options import GenerationOptions
from captioner.source import Source
from captioner.store import upgrade
from checkpoints import save_tiny_blip
from processes import captioner, environment, running_worker, settings_of

PROMPT = "a photography of"


@pytest.fixture
def env(tmp_path: Path, redis_url: str, database_url: str) -> dict[str, str]:
    upgrade(database_url)
    return environment(tmp_path, BROKER__URL=redis_url, DATABASE__URL=database_url)


@pytest.fixture
def jobs(env: dict[str, str]) -> Iterator[Jobs]:
    with Jobs(settings_of(env)) as jobs:
        yield jobs


def mixed_requests(folder: Path, count: int) -> list[tuple[CaptionRequest, str]]:
    """Requests and what is to come of each: a caption, or an error's code."""
    expected = []
    greedy = GenerationOptions(num_beams=1)
    prompted = GenerationOptions(num_beams=1, prompt=PROMPT)
    too_long = GenerationOptions(num_beams=1, prompt="red " * 70)
    for number, scene in enumerate(scenes(7, count)):
        path = folder / f"{number}.png"
        draw(scene, 128).save(path)
        content = path.read_bytes()
        match number % 10:
            case 3:
                path.write_bytes(content[: len(content) // 2])
                request, outcome = CaptionRequest(source=Source(str(path))), "decode_failed"
            case 5:
                path.write_text("not a picture")
                request, outcome = (
                    CaptionRequest(source=Source(str(path))),
                    "unsupported_media_type",
                )
            case 7:
                request = CaptionRequest(source=Source(str(path)), options=too_long)
                outcome = "prompt_too_long"
            case 0 | 2 | 4:
                request = CaptionRequest(source=Source(str(path)), options=prompted)
                outcome = f"{PROMPT} {scene.caption}"
            case _:
                request = CaptionRequest(source=Source(str(path)), options=greedy)
                outcome = scene.caption
        expected.append((request, outcome))
    return expected


def test_200_mixed_jobs_are_each_once_in_sql_with_the_right_state(
    env: dict[str, str], jobs: Jobs, tmp_path: Path
) -> None:
    mixed = mixed_requests(tmp_path, 200)
    expected = {request.id: outcome for request, outcome in mixed}
    requests = [request for request, _ in mixed]
    random.Random(1).shuffle(requests)
    with running_worker(tmp_path, env) as worker:
        for first in range(0, 200, 50):
            jobs.submit_all(requests[first : first + 50])
        ended = {job.id: job for job in jobs.wait_each(expected, timeout_seconds=240)}
        assert worker.stop() == 0
    assert len(ended) == 200, worker.log
    wrong = 0
    for job_id, outcome in expected.items():
        job = ended[job_id]
        assert job.attempt == 1
        if job.state is JobState.FAILED:
            assert job.failure is not None
            assert job.failure.code == outcome
        else:
            assert job.state is JobState.SUCCEEDED
            assert job.model is not None
            assert job.model.revision.startswith("sha256:")
            wrong += job.caption != outcome
    assert wrong <= 2  # the model's own errors: it is right in 99.5 of 100 scenes
    counts = Counter(job.state for job in ended.values())
    assert counts == {JobState.SUCCEEDED: 140, JobState.FAILED: 60}
    with create_engine(jobs.settings.database_url).connect() as connection:
        per_job = connection.execute(
            text("select job_id, count(*) from events group by job_id")
        ).all()
        assert len(per_job) == 200
        assert all(count == 1 for _, count in per_job)
        assert connection.scalar(text("select count(*) from jobs")) == 200
        assert connection.scalar(text("select count(*) from captions")) == 140
        assert connection.scalar(text("select count(*) from workers")) == 0
    connection.engine.dispose()


def test_a_model_that_cannot_load_ends_the_worker_and_leaves_the_queue(
    env: dict[str, str], jobs: Jobs, tmp_path: Path, redis_url: str
) -> None:
    empty = tmp_path / "no-weights"
    save_tiny_blip(empty)
    (empty / "model.safetensors").unlink()
    job = jobs.submit(str(tmp_path / "a.png"))
    broken = env | {"CAPTIONER_MODEL__ID": str(empty)}
    with running_worker(tmp_path, broken, ready=False) as worker:
        assert worker.process.wait(60) == 1
    critical = [line for line in worker.log.splitlines() if "CRITICAL" in line]
    assert len(critical) == 1, worker.log
    assert str(empty) in critical[0]
    assert "Traceback" not in worker.log
    assert jobs.get(job.id).state is JobState.QUEUED
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen("captioner:captions") == 1


@pytest.mark.long
def test_a_worker_refuses_an_outdated_schema_and_names_the_command(
    tmp_path: Path, redis_url: str, sqlite_url: str
) -> None:
    env = environment(tmp_path, BROKER__URL=redis_url, DATABASE__URL=sqlite_url)
    with running_worker(tmp_path, env, ready=False) as worker:
        assert worker.process.wait(60) == 1
    assert "run: captioner db upgrade" in worker.log
    assert "Traceback" not in worker.log
    assert captioner("db", "upgrade", env=env).returncode == 0
    with running_worker(tmp_path, env) as worker:
        assert worker.stop() == 0


@pytest.mark.long
def test_a_job_submitted_while_redis_is_down_is_kept_and_run_later(
    tmp_path: Path, sqlite_url: str, redis_url: str
) -> None:
    upgrade(sqlite_url)
    draw(next(iter(scenes(3, 1))), 128).save(tmp_path / "a.png")
    down = environment(tmp_path, BROKER__URL="redis://127.0.0.1:1/0", DATABASE__URL=sqlite_url)
    submitted = captioner("submit", str(tmp_path / "a.png"), env=down)
    assert submitted.returncode == 0
    assert "kept as queued" in submitted.stderr
    job_id = submitted.stdout.split()[0]
    up = down | {"CAPTIONER_BROKER__URL": redis_url, "CAPTIONER_WORKER__HEARTBEAT_SECONDS": "1"}
    with running_worker(tmp_path, up) as worker:
        waited = captioner("wait", job_id, "--timeout", "60", env=up)
        assert waited.returncode == 0, waited.stderr + worker.log
        assert worker.stop() == 0


@pytest.mark.long
def test_sigterm_finishes_what_runs(env: dict[str, str], jobs: Jobs, tmp_path: Path) -> None:
    draw(next(iter(scenes(3, 1))), 128).save(tmp_path / "a.png")
    env["CAPTIONER_WORKER__CONCURRENCY"] = "4"
    with running_worker(tmp_path, env) as worker:
        submitted = [jobs.submit(str(tmp_path / "a.png")) for _ in range(60)]
        next(iter(jobs.wait_each([submitted[0].id], timeout_seconds=60)))
        assert worker.stop() == 0, worker.log
    counts = jobs.count_by_state()
    assert counts[JobState.PROCESSING] == 0
    assert counts[JobState.SUCCEEDED] + counts[JobState.QUEUED] == 60
    with running_worker(tmp_path, env) as worker:  # what was left in the queue is still there
        ended = list(jobs.wait_each([job.id for job in submitted], timeout_seconds=120))
        assert {job.state for job in ended} == {JobState.SUCCEEDED}
        assert len(ended) == 60
        assert worker.stop() == 0


@pytest.mark.long
def test_plain_celery_runs_the_same_worker(env: dict[str, str], jobs: Jobs, tmp_path: Path) -> None:
    scene = next(iter(scenes(3, 1)))
    draw(scene, 128).save(tmp_path / "a.png")
    command = ("celery", "-A", "captioner", "worker")
    with running_worker(tmp_path, env, *command) as worker:
        job = jobs.wait(jobs.submit(str(tmp_path / "a.png")).id, timeout_seconds=60)
        assert job.caption == scene.caption
        assert worker.stop() == 0


@pytest.mark.long
def test_wrong_messages_end_in_the_log_and_the_worker_goes_on(
    env: dict[str, str], jobs: Jobs, tmp_path: Path
) -> None:
    draw(next(iter(scenes(3, 1))), 128).save(tmp_path / "a.png")
    app = create_app(jobs.settings)
    job_id = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
    wrong = [
        {},
        {"v": 2, "job_ids": [job_id]},
        {"v": True, "job_ids": [job_id]},
        {"v": 1, "job_ids": []},
        {"v": 1, "job_ids": ["secret-token"]},
        {"v": 1, "job_ids": [None]},
        {"v": 1, "job_ids": [job_id] * 65},
        {"v": 1, "job_ids": job_id},
        {"v": 1, "job_ids": [job_id], "extra": 1},
        {"v": 1, "job_ids": [job_id]},  # well-formed, but no such job
    ]
    with running_worker(tmp_path, env) as worker:
        for kwargs in wrong:
            app.send_task("captioner.caption", kwargs=kwargs, queue="captions")
        job = jobs.wait(jobs.submit(str(tmp_path / "a.png")).id, timeout_seconds=60)
        assert job.state is JobState.SUCCEEDED
        assert worker.stop() == 0
    app.close()
    assert worker.log.count("dropped a message") == len(wrong) - 1
    assert "secret-token" not in worker.log
    assert "Traceback" not in worker.log

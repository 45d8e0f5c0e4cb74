"""The guard in a worker's process: on by itself, opened by settings, never telling a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from captioner.domain import JobState
from captioner.errors import ErrorCode
from captioner.jobs import Jobs
from processes import environment, running_worker, settings_of
from sites import running_site


@pytest.mark.long
@pytest.mark.parametrize("allowed", [False, True])
def test_what_is_inside_is_fetched_only_where_it_is_allowed(tmp_path: Path, allowed: bool) -> None:
    with running_site() as site:
        env = environment(
            tmp_path,
            MEDIA__ALLOWED_HOSTS=f"127.0.0.1:{site.server_port}" if allowed else "",
            MEDIA__ALLOWED_PORTS=str(site.server_port),
            RETRY__MAX_RETRIES="0",
        )
        with Jobs(settings_of(env)) as jobs, running_worker(tmp_path, env) as worker:
            job = jobs.submit(f"{site.url}/photo?token=abc")
            job = jobs.wait(job.id, timeout_seconds=60)
            assert worker.stop() == 0

        assert site.connections == int(allowed)
        assert "token" not in worker.log
        if allowed:
            assert job.state is JobState.SUCCEEDED
        else:
            assert job.failure
            assert job.failure.code is ErrorCode.FETCH_FAILED
            assert "127.0.0.1 is not public" not in job.failure.message
            assert "127.0.0.1 is not public" in worker.log
            assert str(job.id) in worker.log

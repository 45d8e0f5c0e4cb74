"""An editor's picture overtakes a backfill, however much of that the worker has in hand."""

from __future__ import annotations

import time
from dataclasses import replace

from captioner.domain import JobState, Lane
from faults.house import House, Ledger
from processes import wait_until

#: Pictures of one batch, as `open_house` sets it.
BATCH = 8


def test_an_interactive_job_overtakes_a_backfill(house: House) -> None:
    started = time.monotonic()
    backfill = [replace(one, lane=Lane.BULK) for one in house.innocents(400)]
    urgent = house.request(house.picture((7, 7, 7)))
    with house.worker(FAULTY_SECONDS="0.4") as worker:
        house.jobs.submit_all(backfill)
        wait_until(lambda: house.count(JobState.SUCCEEDED) > 2 * BATCH)
        (submission,) = house.jobs.submit_all([urgent])
        wait_until(lambda: house.jobs.get(urgent.id).state.terminal)
        ended = house.jobs.get(urgent.id).finished_at
        house.wait_until_done()
        assert worker.stop() == 0
    ledger = Ledger.read(house.database)
    ledger.check([*backfill, urgent], "a picture that overtakes a backfill", started)
    assert ledger.succeeded() == 401
    meanwhile = [
        job
        for job in map(house.jobs.get, [one.id for one in backfill])
        if job.finished_at and ended and submission.job.created_at < job.finished_at < ended
    ]
    # The batch that ran, the one that lay ready, the rest of its own, and what one took to arrive.
    assert len(meanwhile) <= 4 * BATCH

"""What a worker tells at every heartbeat: its own totals, and what waits for all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from captioner import CaptionRequest, JobState, Source, WorkerStats, hookimpl
from captioner.plugins import Plugins
from captioner.reports import MOST_JOBS_COUNTED, Reports
from captioner.store import Store, create_store_engine, upgrade
from processes import wait_until


class Measures:
    def __init__(self) -> None:
        self.heard: list[WorkerStats] = []

    @hookimpl
    def worker_stats(self, stats: WorkerStats) -> None:
        self.heard.append(stats)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    upgrade(database_url)
    with Store(create_store_engine(database_url)) as store:
        yield store


def submit(store: Store, count: int) -> list[CaptionRequest]:
    requests = [CaptionRequest(source=Source(f"/{number}.jpg")) for number in range(count)]
    store.add(requests)
    return requests


def test_jobs_that_have_not_ended_are_counted_up_to_a_limit(store: Store) -> None:
    assert store.count_unfinished(5) == {JobState.QUEUED: 0, JobState.PROCESSING: 0}
    requests = submit(store, 7)
    store.claim([request.id for request in requests[:2]], "somebody")
    store.cancel([requests[6].id])
    assert store.count_unfinished(100) == {JobState.QUEUED: 4, JobState.PROCESSING: 2}
    assert store.count_unfinished(4) == {JobState.QUEUED: 4, JobState.PROCESSING: 2}
    assert store.count_unfinished(3) == {JobState.QUEUED: 3, JobState.PROCESSING: 2}


def test_every_part_of_a_worker_adds_what_it_knows(store: Store) -> None:
    plugins, measures = Plugins(), Measures()
    plugins.register(measures, "measures")
    plugins.errors.report("other", "observe", "down")
    submit(store, 3)
    reports = Reports(store, plugins)
    reports.include(lambda stats: replace(stats, batches=4, pictures=9))
    reports.include(lambda stats: replace(stats, deliveries={("webhook", "dead"): 1}))
    reports.send()
    reports.end()
    assert measures.heard == [
        WorkerStats(
            batches=4,
            pictures=9,
            plugin_errors={("other", "observe"): 1},
            deliveries={("webhook", "dead"): 1},
            unfinished_jobs={"queued": 3, "processing": 0},
        )
    ]


def test_nothing_is_counted_for_nobody(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def count(most: int) -> dict[JobState, int]:
        asked.append(most)
        return {}

    monkeypatch.setattr(store, "count_unfinished", count)
    plugins = Plugins()
    reports = Reports(store, plugins)
    reports.send()
    assert asked == []
    measures = Measures()
    plugins.register(measures, "measures")
    reports.send()
    wait_until(lambda: len(measures.heard) == 1)
    assert asked == [MOST_JOBS_COUNTED]
    reports.end()

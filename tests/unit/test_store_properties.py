"""Any sequence of operations keeps the books: every job in one state, one event per ended job."""

from __future__ import annotations

import functools
import itertools
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
)
from sqlalchemy import text

from captioner.domain import Caption, CaptionRequest, JobFailure, JobState, Outcome, Source
from captioner.errors import DuplicateClientKeyError, ErrorCode
from captioner.store import Store, create_store_engine, upgrade

TEXTS = st.text(max_size=8)
SCORES = st.floats(width=32)
ENDS = st.sampled_from([JobState.SUCCEEDED, JobState.FAILED, JobState.EXPIRED])


@functools.cache
def empty_database() -> bytes:
    """A database file with the tables in it; migrating one for every example would take minutes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.sqlite3"
        upgrade(f"sqlite:///{path}")
        return path.read_bytes()


class Books(RuleBasedStateMachine):
    """A model in memory beside the store; what they say must agree after every step."""

    jobs: Bundle[UUID] = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "books.sqlite3"
        path.write_bytes(empty_database())
        self.store = Store(create_store_engine(f"sqlite:///{path}"))
        self.ids = map(UUID, map("{:032x}".format, itertools.count(1)))
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.state: dict[UUID, JobState] = {}
        self.attempt: dict[UUID, int] = {}
        self.keys: dict[str, tuple[str, UUID]] = {}

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(
        target=jobs,
        wanted=st.lists(
            st.tuples(st.sampled_from("ab"), st.none() | st.sampled_from(["k", "l", "m"])),
            max_size=4,
        ),
    )
    def add(self, wanted: list[tuple[str, str | None]]) -> MultipleResults[UUID]:
        self.now += timedelta(seconds=1)
        asked = [
            CaptionRequest(source=Source(f"/{name}"), client_key=key, id=next(self.ids))
            for name, key in wanted
        ]
        sources = {key: source for key, (source, _) in self.keys.items()}
        clash = False
        for name, key in wanted:
            if key is not None:
                clash |= sources.setdefault(key, name) != name
        try:
            added = self.store.add(asked, now=self.now)
        except DuplicateClientKeyError:
            assert clash
            return multiple()
        assert not clash
        for (name, key), one in zip(wanted, added, strict=True):
            assert one.created == (one.job.id not in self.state)
            self.state.setdefault(one.job.id, JobState.QUEUED)
            self.attempt.setdefault(one.job.id, 0)
            if key is not None:
                assert self.keys.setdefault(key, (name, one.job.id)) == (name, one.job.id)
        return multiple(*dict.fromkeys(one.job.id for one in added))

    @rule(ids=st.lists(jobs, max_size=4))
    def claim(self, ids: list[UUID]) -> None:
        taken = self.store.claim(ids, "w", now=self.now)
        assert {job.id for job in taken} == {
            one for one in ids if self.state[one] is JobState.QUEUED
        }
        for job in taken:
            self.state[job.id] = JobState.PROCESSING
            self.attempt[job.id] += 1
            assert job.attempt == self.attempt[job.id]

    @rule(
        outcomes=st.lists(
            st.tuples(jobs, st.integers(0, 1), ENDS, TEXTS, SCORES, st.integers(0, 1)), max_size=4
        )
    )
    def record(self, outcomes: list[tuple[UUID, int, JobState, str, float, int]]) -> None:
        asked = [
            Outcome(
                job_id=job_id,
                attempt=self.attempt[job_id] - stale,
                state=state,
                captions=tuple(
                    Caption(text=words, continuation=words, score=score, rank=rank)
                    for rank in (0, other)
                ),
                failure=None
                if state is JobState.SUCCEEDED
                else JobFailure(ErrorCode.INTERNAL, words, retryable=False),
            )
            for job_id, stale, state, words, score, other in outcomes
        ]
        expected = {
            one.job_id
            for one in asked
            if self.state[one.job_id] is JobState.PROCESSING
            and one.attempt == self.attempt[one.job_id]
        }
        assert self.store.record(asked, now=self.now) == expected
        for job_id in expected:
            self.state[job_id] = self.store.get(job_id).state
            assert self.state[job_id].terminal

    @rule(ids=st.lists(jobs, max_size=3))
    def cancel(self, ids: list[UUID]) -> None:
        ended = set(self.store.cancel(ids, now=self.now))
        assert ended == {one for one in ids if not self.state[one].terminal}
        self.state |= dict.fromkeys(ended, JobState.CANCELED)

    @invariant()
    def the_books_agree(self) -> None:
        found = {job.id: job for job in self.store.list_jobs(limit=1_000)}
        assert {one: job.state for one, job in found.items()} == self.state
        counts = self.store.count_by_state()
        assert sum(counts.values()) == len(self.state)
        with self.store._database.reading() as connection:
            events = [
                (UUID(row.job_id), row.state)
                for row in connection.execute(text("SELECT job_id, state FROM events"))
            ]
            captioned = {
                UUID(row.job_id)
                for row in connection.execute(text("SELECT DISTINCT job_id FROM captions"))
            }
        assert sorted(events) == sorted(
            (one, state.value) for one, state in self.state.items() if state.terminal
        )
        assert captioned == {
            one for one, state in self.state.items() if state is JobState.SUCCEEDED
        }


Books.TestCase.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
TestBooks = Books.TestCase

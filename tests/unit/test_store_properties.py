"""Any sequence of operations keeps the books: every job in one state, one event per ended job."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections import Counter
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

from captioner.domain import Caption, CaptionRequest, JobFailure, JobState, Outcome, Requeue
from captioner.errors import DuplicateClientKeyError, ErrorCode
from captioner.source import Source
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
        self.owner: dict[UUID, str] = {}
        self.alive: set[str] = set()
        self.not_before: dict[UUID, datetime] = {}
        self.deadline: dict[UUID, datetime] = {}
        self.counts: dict[UUID, tuple[int, int]] = {}
        self.losses: Counter[UUID] = Counter()
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
        seconds=st.none() | st.integers(1, 5),
    )
    def add(
        self, wanted: list[tuple[str, str | None]], seconds: int | None
    ) -> MultipleResults[UUID]:
        self.now += timedelta(seconds=1)
        deadline = self.now + timedelta(seconds=seconds) if seconds else None
        asked = [
            CaptionRequest(
                source=Source(f"/{name}"), client_key=key, id=next(self.ids), deadline_at=deadline
            )
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
            self.counts.setdefault(one.job.id, (0, 0))
            if one.created and deadline:
                self.deadline[one.job.id] = deadline
            if key is not None:
                assert self.keys.setdefault(key, (name, one.job.id)) == (name, one.job.id)
        return multiple(*dict.fromkeys(one.job.id for one in added))

    @rule(seconds=st.integers(1, 5))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(owner=st.sampled_from(["v", "w"]))
    def work(self, owner: str) -> None:
        if not self.store.heartbeat(owner, now=self.now):
            assert owner not in self.alive
            self.store.register_worker(owner, worker_id=owner, now=self.now)
            self.alive.add(owner)

    @rule(ids=st.lists(jobs, max_size=4), owner=st.sampled_from(["v", "w"]))
    def claim(self, ids: list[UUID], owner: str) -> None:
        taken = self.store.claim(ids, owner, now=self.now)
        assert {job.id for job in taken} == {
            one
            for one in ids
            if self.state[one] is JobState.QUEUED
            and self.not_before.get(one, self.now) <= self.now
            and (one not in self.deadline or self.now < self.deadline[one])
        }
        for job in taken:
            self.state[job.id] = JobState.PROCESSING
            self.attempt[job.id] += 1
            self.owner[job.id] = owner
            self.not_before.pop(job.id, None)
            assert job.attempt == self.attempt[job.id]

    @rule(
        asked=st.lists(
            st.tuples(
                jobs,
                st.integers(0, 1),
                st.none() | st.integers(0, 5),
                st.none() | TEXTS,
                st.booleans(),
            ),
            max_size=4,
        )
    )
    def requeue(self, asked: list[tuple[UUID, int, int | None, str | None, bool]]) -> None:
        first: dict[tuple[UUID, int], Requeue] = {}
        for job_id, stale, seconds, words, crashed in asked:
            attempt = self.attempt[job_id] - stale
            failure = None if words is None else JobFailure(ErrorCode.INTERNAL, words, True)
            not_before = None if seconds is None else self.now + timedelta(seconds=seconds)
            one = Requeue(
                job_id=job_id,
                attempt=attempt,
                not_before=not_before,
                failure=failure,
                crashed=crashed,
            )
            first.setdefault((job_id, attempt), one)
        expected = {
            one.job_id: one
            for one in first.values()
            if self.state[one.job_id] is JobState.PROCESSING
            and one.attempt == self.attempt[one.job_id]
        }
        assert self.store.requeue([*first.values()]) == set(expected)
        for job_id, one in expected.items():
            self.state[job_id] = JobState.QUEUED
            retries, crashes = self.counts[job_id]
            self.counts[job_id] = (retries + (one.failure is not None), crashes + one.crashed)
            if one.not_before:
                self.not_before[job_id] = one.not_before

    @rule(silent=st.integers(1, 5))
    def expire_workers(self, silent: int) -> None:
        lost = self.store.expire_workers(
            timedelta(seconds=silent), 1_000, max_losses=3, now=self.now
        )
        known = {owner for owner in self.alive if self.store.heartbeat(owner, now=self.now)}
        assert len(self.alive - known) == lost.workers
        self.alive = known
        mine = [
            one
            for one, state in self.state.items()
            if state is JobState.PROCESSING and self.owner[one] not in known
        ]
        self.losses.update(mine)
        failed = [one for one in mine if self.losses[one] >= 3]
        assert (lost.requeued, lost.failed) == (len(mine) - len(failed), len(failed))
        self.state |= dict.fromkeys(mine, JobState.QUEUED) | dict.fromkeys(failed, JobState.FAILED)

    @rule()
    def expire_overdue(self) -> None:
        overdue = {
            one
            for one, deadline in self.deadline.items()
            if self.state[one] is JobState.QUEUED and deadline <= self.now
        }
        assert set(self.store.expire_overdue(1_000, now=self.now)) == overdue
        self.state |= dict.fromkeys(overdue, JobState.EXPIRED)

    @rule()
    def release_due(self) -> None:
        due = {
            one
            for one, moment in self.not_before.items()
            if self.state[one] is JobState.QUEUED and moment <= self.now
        }
        assert self.store.release_due(1_000, now=self.now) == len(due)
        for one in due:
            del self.not_before[one]

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
        assert {one: (job.retries, job.crashes) for one, job in found.items()} == self.counts
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


Books.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestBooks = Books.TestCase

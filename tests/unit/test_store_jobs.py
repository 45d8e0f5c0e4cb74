"""One job at a time through the store, on both databases."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text, update

from captioner.domain import (
    Caption,
    CaptionRequest,
    ClaimedJob,
    JobFailure,
    JobState,
    Lane,
    ModelInfo,
    Outcome,
)
from captioner.errors import (
    DuplicateClientKeyError,
    ErrorCode,
    InvalidRequestError,
    JobNotFoundError,
)
from captioner.options import GenerationOptions
from captioner.source import Source
from captioner.store import Cursor, Store, create_store_engine, upgrade
from captioner.store.models import JobRow

if TYPE_CHECKING:
    from collections.abc import Iterator

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
MODEL = ModelInfo(
    id="demo", revision="abc", dtype="float32", device="cpu", backend="transformers", image_size=64
)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    engine = create_store_engine(database_url)
    upgrade(engine)
    with Store(engine) as store:
        yield store


def request(name: str = "a", **values: Any) -> CaptionRequest:
    return CaptionRequest(
        source=Source(f"https://example.org/{name}.jpg?signature=s3cret"), **values
    )


def caption(text: str = "a red circle", **values: Any) -> Caption:
    return Caption(**{"text": text, "continuation": text, "score": -0.5, **values})


def success(job: ClaimedJob, *captions: Caption) -> Outcome:
    return Outcome(
        job_id=job.id,
        attempt=job.attempt,
        state=JobState.SUCCEEDED,
        captions=captions or (caption(),),
        model=MODEL,
        timings={"engine": 0.25, "total": 1.5},
    )


def submit(store: Store, *requests: CaptionRequest) -> list[UUID]:
    return [submission.job.id for submission in store.add(requests, now=NOON)]


def claimed(store: Store, count: int = 1) -> list[ClaimedJob]:
    ids = submit(store, *(request(str(number)) for number in range(count)))
    jobs = {job.id: job for job in store.claim(ids, "worker", now=NOON)}
    return [jobs[one] for one in ids]


def rows(store: Store, query: str) -> list[Any]:
    with store._database.engine.connect() as connection:
        return list(connection.execute(text(query)))


def events(store: Store) -> list[tuple[UUID, str]]:
    return [
        (UUID(str(job_id)), kind) for job_id, kind in rows(store, "SELECT job_id, type FROM events")
    ]


# Submitting


def test_a_new_job_comes_back_as_it_was_submitted(store: Store) -> None:
    asked = request(
        options=GenerationOptions(prompt="a photo of", num_beams=1, seed=2**63 - 1),
        client_key="cms-77",
        metadata={"ref": "ü–🦉", "deep": [{"a": None}, 1.5, True]},
        lane=Lane.BULK,
    )
    (submission,) = store.add([asked], now=NOON)
    assert submission.created
    job = store.get(asked.id)
    assert job == submission.job
    assert job.source == asked.source
    assert job.options == asked.options
    assert (job.client_key, job.metadata, job.lane) == ("cms-77", asked.metadata, Lane.BULK)
    assert (job.state, job.attempt, job.owner, job.created_at) == (JobState.QUEUED, 0, None, NOON)


def test_the_displayed_source_has_no_secret(store: Store) -> None:
    submit(store, request())
    assert rows(store, "SELECT source_display FROM jobs") == [("https://example.org/a.jpg?…",)]


def test_times_are_moments_whatever_their_zone(store: Store) -> None:
    elsewhere = NOON.astimezone(datetime.now().astimezone().tzinfo)
    (submission,) = store.add([request()], now=elsewhere)
    created_at = store.get(submission.job.id).created_at
    assert created_at == NOON
    assert created_at.tzinfo is UTC


def test_the_same_request_is_the_same_job(store: Store) -> None:
    first, second = request(client_key="k"), request(client_key="k")
    (a,) = store.add([first])
    (b,) = store.add([second])
    (c,) = store.add([first])
    assert (a.created, b.created, c.created) == (True, False, False)
    assert a.job.id == b.job.id == c.job.id
    assert store.count_by_state()[JobState.QUEUED] == 1


def test_the_same_request_twice_in_one_call_is_one_job(store: Store) -> None:
    unkeyed = request("b")
    submissions = store.add(
        [request(client_key="k"), unkeyed, request(client_key="k"), unkeyed, request()]
    )
    assert [submission.created for submission in submissions] == [True, True, False, False, True]
    assert submissions[0].job.id == submissions[2].job.id
    assert submissions[1].job.id == submissions[3].job.id


def test_a_submission_of_a_finished_job_has_its_captions(store: Store) -> None:
    (submission,) = store.add([request(client_key="k")])
    store.record([success(store.claim([submission.job.id], "w")[0])])
    (again,) = store.add([request(client_key="k")])
    assert again.job.caption == "a red circle"


@pytest.mark.parametrize(
    "other",
    [
        request("other", client_key="k"),
        request(client_key="k", options=GenerationOptions(num_beams=1)),
    ],
    ids=["source", "options"],
)
def test_a_key_of_another_request_is_refused_and_nothing_inserted(
    store: Store, other: CaptionRequest
) -> None:
    store.add([request(client_key="k")])
    with pytest.raises(DuplicateClientKeyError, match="client key 'k' belongs"):
        store.add([request("new"), other])
    with pytest.raises(DuplicateClientKeyError):
        store.add([dataclasses.replace(request(client_key="n")), request("x", client_key="n")])
    assert store.count_by_state()[JobState.QUEUED] == 1


def test_an_id_of_another_request_is_refused(store: Store) -> None:
    (job_id,) = submit(store, request(client_key="k"))
    with pytest.raises(DuplicateClientKeyError, match="another client key"):
        store.add([request(id=job_id)])


@pytest.mark.parametrize(
    "values",
    [
        {"metadata": {"a": "NUL\x00"}},
        {"metadata": {"a": math.nan}},
        {"metadata": {"a": object()}},
        {"metadata": {"a": "half a pair \ud83d"}},
        {"client_key": "half a pair \ud83d"},
        {"options": GenerationOptions(prompt="half a pair \ud83d")},
    ],
    ids=["nul", "nan", "object", "surrogate", "key", "prompt"],
)
def test_what_cannot_be_stored_is_refused_and_nothing_inserted(
    store: Store, values: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestError, match=f"{next(iter(values))} cannot be stored"):
        store.add([request("good"), request(**values)])
    assert store.list_jobs() == []


def test_an_escaped_nul_is_only_text(store: Store) -> None:
    metadata = {"regex": "\\u0000", "path": "C:\\\\u0000"}
    (submission,) = store.add([request(metadata=metadata)])
    assert store.get(submission.job.id).metadata == metadata


def test_many_jobs_keep_their_order(store: Store) -> None:
    ids = submit(store, *(request(str(number)) for number in range(2_500)))
    assert [one for one, _ in store.undispatched(NOON + timedelta(1), 5_000)] == ids
    assert [job.id for job in store.list_jobs(limit=3)] == ids[:-4:-1]


def test_dispatched_jobs_need_no_message(store: Store) -> None:
    old, sent = submit(store, request("1", lane=Lane.BULK), request("2"))
    store.add([request("3")], now=NOON + timedelta(hours=1))
    store.mark_dispatched([[sent]], now=NOON)
    assert store.undispatched(NOON + timedelta(minutes=1), 10) == [(old, Lane.BULK)]
    assert store.get(sent).dispatched_at == NOON


# Reading


def test_an_unknown_id_is_not_found(store: Store) -> None:
    unknown = uuid4()
    with pytest.raises(JobNotFoundError, match=str(unknown)):
        store.get(unknown)
    assert store.get_many([unknown]) == []


def test_many_come_in_the_order_asked_for(store: Store) -> None:
    ids = submit(store, *(request(str(number)) for number in range(5)))[::-1]
    assert [job.id for job in store.get_many([*ids, uuid4()])] == ids


def test_pages_hold_every_job_once(store: Store) -> None:
    for _ in range(7):  # created in the same microsecond: only the id tells them apart
        store.add([request()], now=NOON)
    seen: list[UUID] = []
    before = None
    while page := store.list_jobs(limit=3, before=before):
        seen += [job.id for job in page]
        before = Cursor.after(page[-1])
    assert len(seen) == len(set(seen)) == 7


def test_one_state_can_be_listed(store: Store) -> None:
    first, second = submit(store, request("1"), request("2"))
    store.cancel([first])
    assert [job.id for job in store.list_jobs(JobState.CANCELED)] == [first]
    assert [job.id for job in store.list_jobs(JobState.QUEUED)] == [second]
    assert store.count_by_state() == dict.fromkeys(JobState, 0) | {
        JobState.CANCELED: 1,
        JobState.QUEUED: 1,
    }


# Claiming


@pytest.mark.parametrize(
    "written",
    [
        {"temperature": 1e-9, "do_sample": True, "num_beams": 1},
        {"length_penalty": 400.0},
        {"of_next_year": 1},
        {"alt_text": {"max_characters": 5_000}},
        {"alt_text": "short"},
        {"video": {"strategy": "scenes", "timestamps": [2.0]}},
    ],
    ids=str,
)
def test_a_job_of_another_version_is_shown_as_it_was_asked_and_not_run(
    store: Store, written: dict[str, Any]
) -> None:
    """Limits change, and jobs stay: one that this version would refuse kept lists from showing."""
    (other, own) = (submission.job for submission in store.add([request("a"), request("b")]))
    options = other.options.as_mapping() | written
    with store._database.transaction() as connection:
        connection.execute(update(JobRow).where(JobRow.id == other.id).values(options=options))
    assert [job.id for job in store.list_jobs()] == [own.id, other.id]
    shown = store.get(other.id).as_mapping()["options"]
    for name in written.keys() & {"temperature", "length_penalty"}:
        assert shown[name] == written[name]
    assert shown["num_beams"] == written.get("num_beams", other.options.num_beams)
    assert [job.id for job in store.claim([other.id, own.id], "w")] == [own.id]
    ended = store.get(other.id)
    assert ended.failure is not None
    assert ended.failure.code is ErrorCode.INVALID_REQUEST


def test_an_error_code_of_a_newer_version_is_shown_as_text(store: Store) -> None:
    (submission,) = store.add([request()])
    (job,) = store.claim([submission.job.id], "w")
    failure = JobFailure(ErrorCode.DECODE_FAILED, "it rained", retryable=True)
    store.record([Outcome(job_id=job.id, attempt=1, state=JobState.FAILED, failure=failure)])
    with store._database.transaction() as connection:
        connection.execute(text("UPDATE jobs SET error_code = 'weather'"))
    (shown,) = store.list_jobs()
    assert shown.failure == JobFailure(ErrorCode.INTERNAL, "weather: it rained", retryable=True)


def test_a_claim_takes_queued_jobs_once(store: Store) -> None:
    ids = submit(store, request("1"), request("2"))
    assert {job.id for job in store.claim([*ids, uuid4()], "w1", now=NOON)} == set(ids)
    jobs = store.get_many(ids)
    assert {(job.state, job.attempt, job.owner, job.started_at) for job in jobs} == {
        (JobState.PROCESSING, 1, "w1", NOON)
    }
    assert store.claim(ids, "w2") == []
    assert store.claim([], "w2") == []


def test_a_retry_is_not_claimed_before_its_time(store: Store) -> None:
    (job_id,) = submit(store, request())
    with store._database.transaction() as connection:
        connection.execute(
            text("UPDATE jobs SET not_before = :t").bindparams(
                t=(NOON + timedelta(minutes=1)).replace(tzinfo=None)
                if connection.dialect.name == "sqlite"
                else NOON + timedelta(minutes=1)
            )
        )
    assert store.claim([job_id], "w", now=NOON + timedelta(seconds=59)) == []
    assert len(store.claim([job_id], "w", now=NOON + timedelta(seconds=60))) == 1


def test_a_row_this_version_cannot_read_ends_and_harms_no_other(store: Store) -> None:
    bad, good = submit(store, request("1"), request("2"))
    with store._database.transaction() as connection:
        connection.execute(
            text("UPDATE jobs SET options = '{\"num_beams\": 0}' WHERE source LIKE '%/1.jpg%'")
        )
    assert [job.id for job in store.claim([bad, good], "w")] == [good]
    assert store.count_by_state()[JobState.FAILED] == 1
    assert events(store) == [(bad, "caption.failed")]


# Recording


def test_a_success_is_recorded_with_everything_and_one_event(store: Store) -> None:
    (job,) = claimed(store)
    captions = (
        caption("a", rank=0, beam_score=-0.25, alt_text="A", origin="model"),
        caption("b", rank=1, start_seconds=0.5, end_seconds=2.0, frame_seconds=1.25),
    )
    later = NOON + timedelta(seconds=2)
    assert store.record([success(job, *captions)], now=later) == {job.id}
    done = store.get(job.id)
    assert done.captions == captions
    assert (done.state, done.finished_at, done.model) == (JobState.SUCCEEDED, later, MODEL)
    assert (done.failure, done.timings) == (None, {"engine": 0.25, "total": 1.5})
    assert events(store) == [(job.id, "caption.succeeded")]


def test_a_failure_is_recorded(store: Store) -> None:
    (job,) = claimed(store)
    failure = JobFailure(ErrorCode.FETCH_FAILED, "HTTP 503", retryable=True)
    store.record(
        [Outcome(job_id=job.id, attempt=1, state=JobState.FAILED, failure=failure)], now=NOON
    )
    assert store.get(job.id).failure == failure
    assert events(store) == [(job.id, "caption.failed")]


def test_a_failure_whose_message_cannot_be_stored_keeps_its_code(store: Store) -> None:
    (job,) = claimed(store)
    failure = JobFailure(
        ErrorCode.DECODE_FAILED, "bytes \x00\ud83d…" + "x" * 5_000, retryable=False
    )
    store.record([Outcome(job_id=job.id, attempt=1, state=JobState.FAILED, failure=failure)])
    kept = store.get(job.id).failure
    assert kept is not None
    assert kept.code is ErrorCode.DECODE_FAILED
    assert kept.message.startswith("bytes �?…x")


def test_a_stale_attempt_changes_nothing(store: Store) -> None:
    (job,) = claimed(store)
    stale = success(dataclasses.replace(job, attempt=0))
    assert store.record([stale]) == set()
    assert store.get(job.id).state is JobState.PROCESSING
    assert store.record([stale, success(job)]) == {job.id}
    assert store.record([success(job, caption("again"))]) == set()
    assert store.get(job.id).caption == "a red circle"
    assert events(store) == [(job.id, "caption.succeeded")]


def test_an_outcome_twice_in_one_call_is_one_event(store: Store) -> None:
    (job,) = claimed(store)
    assert store.record([success(job), success(job)]) == {job.id}
    assert len(store.get(job.id).captions) == 1
    assert len(events(store)) == 1


def test_a_queued_or_unknown_job_is_not_recorded(store: Store) -> None:
    (job_id,) = submit(store, request())
    outcomes = [
        Outcome(job_id=one, attempt=0, state=JobState.SUCCEEDED) for one in (job_id, uuid4())
    ]
    assert store.record(outcomes) == set()
    assert events(store) == []


@pytest.mark.parametrize(
    "bad",
    [
        (caption("NUL \x00"),),
        (caption("half a pair \ud83d"),),
        (caption(score=math.nan),),
        (caption(score=-math.inf),),
        (caption(beam_score=math.nan),),
        # What only the databases notice:
        (caption(rank=0), caption(rank=0)),
        (caption(rank=2**70),),
        (caption(score=None),),
    ],
    ids=["nul", "surrogate", "nan", "infinite", "beam-nan", "rank-twice", "rank-large", "no-score"],
)
def test_a_result_that_cannot_be_stored_fails_and_harms_no_other(
    store: Store, bad: tuple[Caption, ...]
) -> None:
    jobs = claimed(store, 5)
    outcomes = [success(job) for job in jobs]
    outcomes[2] = success(jobs[2], *bad)
    assert store.record(outcomes) == {job.id for job in jobs}
    states = [store.get(job.id).state for job in jobs]
    assert states == [JobState.SUCCEEDED] * 2 + [JobState.FAILED] + [JobState.SUCCEEDED] * 2
    failed = store.get(jobs[2].id)
    assert failed.failure is not None
    assert failed.failure.code is ErrorCode.INTERNAL
    assert failed.captions == ()
    assert len(events(store)) == 5


def test_a_state_that_ends_nothing_is_recorded_as_a_failure(store: Store) -> None:
    (job,) = claimed(store)
    assert store.record([Outcome(job_id=job.id, attempt=1, state=JobState.QUEUED)]) == {job.id}
    assert store.get(job.id).state is JobState.FAILED


# Canceling


def test_cancel_ends_what_has_not_ended(store: Store) -> None:
    running, done = claimed(store, 2)
    store.record([success(done)])
    (queued,) = submit(store, request("queued"))
    assert set(store.cancel([running.id, done.id, queued, uuid4()], now=NOON)) == {
        running.id,
        queued,
    }
    assert store.cancel([running.id, queued]) == []
    assert store.record([success(running)]) == set()
    assert store.get(running.id).captions == ()
    assert store.get(running.id).finished_at == NOON
    assert store.claim([queued], "w") == []
    assert sorted(kind for _, kind in events(store)) == [
        "caption.canceled",
        "caption.canceled",
        "caption.succeeded",
    ]


# Workers and leases


def test_a_worker_lives_until_it_is_unregistered(store: Store) -> None:
    first = store.register_worker("gpu0@host", pid=7, queues=["captions"], now=NOON)
    second = store.register_worker("gpu0@host" * 60, now=NOON)
    assert first != second
    assert first.startswith("gpu0@host/")
    assert store.heartbeat(first, now=NOON + timedelta(seconds=10))
    store.unregister_worker(first)
    assert not store.heartbeat(first)
    assert store.heartbeat(second)


def test_a_lease_has_one_holder_until_it_expires(store: Store) -> None:
    ttl = timedelta(seconds=30)
    assert store.try_acquire("sweeper", "a", ttl, now=NOON)
    assert not store.try_acquire("sweeper", "b", ttl, now=NOON + timedelta(seconds=29))
    assert store.try_acquire("sweeper", "a", ttl, now=NOON + timedelta(seconds=29))
    assert not store.try_acquire("sweeper", "b", ttl, now=NOON + timedelta(seconds=58))
    assert store.try_acquire("sweeper", "b", ttl, now=NOON + timedelta(seconds=59))
    store.release("sweeper", "a")
    assert not store.try_acquire("sweeper", "a", ttl, now=NOON + timedelta(seconds=59))
    store.release("sweeper", "b")
    assert store.try_acquire("sweeper", "a", ttl, now=NOON + timedelta(seconds=59))

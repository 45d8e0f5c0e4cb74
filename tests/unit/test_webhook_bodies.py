from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.domain import Caption, CaptionRequest, Job, JobFailure, JobState, Lane, ModelInfo
from captioner.errors import ErrorCode
from captioner.events import ALL_EVENT_TYPES, Event, event_type
from captioner.options import GenerationOptions
from captioner.source import Source
from captioner.store.mapping import new_job
from captioner.webhooks.body import MAX_BODY_BYTES, webhook_body

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
MODEL = ModelInfo(
    id="demo", revision="abc", dtype="float32", device="cpu", backend="fast", image_size=64
)


def ended(**values: Any) -> Job:
    request = CaptionRequest(
        source=Source("https://cms.example/a.jpg?token=s3cret"),
        client_key="page:17",
        metadata={"page": "/über"},
        webhook_url="https://cms.example/s3cret/hook?token=s3cret",
    )
    job = replace(
        new_job(request, NOON),
        state=JobState.SUCCEEDED,
        attempt=1,
        finished_at=NOON,
        model=MODEL,
        timings={"total": 0.5},
        captions=(caption("a red circle"),),
    )
    return replace(job, **values)


def caption(text: str, rank: int = 0) -> Caption:
    return Caption(text=text, continuation=text, score=-0.5, rank=rank)


def event(job: Job, **values: Any) -> Event:
    given_values: dict[str, Any] = {
        "id": 7,
        "job_id": job.id,
        "type": event_type(job.state, job.lane),
        "state": job.state,
        "attempt": job.attempt,
        "occurred_at": NOON,
    }
    return Event(**{**given_values, **values})


def shown(job: Job) -> dict[str, Any]:
    """The job as programs see it, but where it is told of."""
    return {name: value for name, value in job.as_mapping().items() if name != "webhook_url"}


def told(job: Job) -> dict[str, Any]:
    body = webhook_body(event(job), job)
    assert len(body) < MAX_BODY_BYTES
    data: dict[str, Any] = json.loads(body)["data"]
    return data


def test_the_body_is_the_job_as_programs_see_it() -> None:
    job = ended()
    body = webhook_body(event(job), job)
    assert json.loads(body) == {
        "type": "caption.succeeded",
        "timestamp": "2026-01-02T12:00:00Z",
        "data": shown(job),
    }
    assert "webhook_url" in job.as_mapping()
    assert "/über".encode() in body
    assert b"s3cret" not in body


def test_the_timestamp_is_of_the_event_and_in_utc() -> None:
    job = ended()
    moment = NOON.replace(microsecond=5).astimezone(timezone(timedelta(hours=-3)))
    body = json.loads(webhook_body(event(job, occurred_at=moment), job))
    assert body["timestamp"] == "2026-01-02T12:00:00.000005Z"


def test_videos_have_types_of_their_own() -> None:
    assert event_type(JobState.FAILED, Lane.VIDEO) == "video.failed"
    assert event_type(JobState.FAILED, Lane.BULK) == "caption.failed"
    ends = ("succeeded", "failed", "canceled", "expired")
    assert set(ALL_EVENT_TYPES) == {
        f"{kind}.{end}" for kind in ("caption", "video") for end in ends
    }
    assert len(ALL_EVENT_TYPES) == 8


def test_a_job_that_is_too_large_loses_its_metadata_first() -> None:
    job = ended(metadata={"text": "x" * 19_990})
    data = told(job)
    assert data == {**shown(job), "metadata": {}, "truncated": True}


def test_then_its_options() -> None:
    job = ended(
        metadata={"text": "x" * 30_000},
        options=GenerationOptions(prompt="🐕" * 4_096),
        captions=(caption("x" * 2_000),),
    )
    assert told(job) == {**shown(job), "metadata": {}, "options": {}, "truncated": True}


def test_then_all_captions_but_the_best() -> None:
    captions = tuple(caption(f"{rank} " + "x" * 4_000, rank) for rank in range(4))
    job = ended(captions=captions)
    data = told(job)
    assert data["captions"] == job.as_mapping()["captions"][:1]
    assert data["source"] == job.source.display
    assert data["truncated"] is True


def test_then_what_texts_are_too_long() -> None:
    failure = JobFailure(ErrorCode.FETCH_FAILED, "🐕" * 10_000, retryable=True)
    job = ended(state=JobState.FAILED, failure=failure, captions=())
    data = told(job)
    assert data["error"] == {"code": "fetch_failed", "message": "🐕" * 200, "retryable": True}
    assert data["id"] == str(job.id)


def test_and_at_last_everything_but_the_id_and_the_state() -> None:
    job = ended(timings={f"stage {number}": 1.5 for number in range(2_000)})
    assert told(job) == {"id": str(job.id), "state": "succeeded", "truncated": True}


def test_what_fits_is_not_touched() -> None:
    job = ended(metadata={"text": ""})
    room = MAX_BODY_BYTES - 1 - len(webhook_body(event(job), job))
    assert "truncated" not in told(ended(metadata={"text": "x" * room}))
    assert "truncated" in told(ended(metadata={"text": "x" * (room + 1)}))


@settings(deadline=None)
@given(
    metadata=st.dictionaries(st.text(max_size=5), st.text(), max_size=5),
    times=st.integers(1, 4_000),
    character=st.characters(exclude_categories=["Cs"]),
)
def test_it_is_always_small_and_has_the_id(
    metadata: dict[str, str], times: int, character: str
) -> None:
    text = character * times
    job = ended(
        metadata={**metadata, "x": text},
        captions=tuple(caption(text, rank) for rank in range(3)),
        client_key=text[:255],
        model=MODEL,
    )
    assert told(job)["id"] == str(job.id)


@pytest.mark.parametrize("state", [state for state in JobState if state.terminal])
def test_every_end_has_a_body(state: JobState) -> None:
    job = ended(state=state, captions=(), model=None)
    assert json.loads(webhook_body(event(job), job))["type"] == f"caption.{state}"

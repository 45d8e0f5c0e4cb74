"""Messages of producers without a database: each request by itself, whole or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from captioner import receiving
from captioner.celery import CaptionerApp, create_app
from captioner.domain import JobState
from captioner.errors import ErrorCode, JobNotFoundError, StoreUnavailableError
from captioner.receiving import receive
from captioner.request_json import request_from_message
from captioner.settings import Settings
from captioner.store import Store, create_store_engine, endings, upgrade


@pytest.fixture
def app(tmp_path: Path) -> CaptionerApp:
    return create_app(Settings(data_dir=tmp_path))


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    upgrade(database_url)
    with Store(create_store_engine(database_url)) as store:
        yield store


def request(**fields: object) -> dict[str, Any]:
    return {"id": str(uuid.uuid4()), "source": "https://cms.example/a.jpg", **fields}


def test_a_refused_request_is_a_failed_job_that_nobody_claims(
    app: CaptionerApp, store: Store
) -> None:
    bad = request(nonsense="\x00")
    assert receive(app, store, [bad, bad]) == {"new": 0, "known": 0, "refused": 2}
    (job,) = store.list_jobs()
    assert (job.state, job.attempt) == (JobState.FAILED, 0)
    assert job.failure
    assert job.failure.code is ErrorCode.INVALID_REQUEST
    assert not store.claim([job.id], store.register_worker("gpu0@host"))


def test_a_refused_request_is_recorded_whole_or_not_at_all(
    app: CaptionerApp, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be found again, queued, and captioned by other options than it asked for."""
    bad = request(nonsense=1)

    def away(*_: object) -> None:
        raise StoreUnavailableError("database … cannot be used: away")

    with monkeypatch.context() as patch:
        patch.setattr(endings, "refuse", away)
        with pytest.raises(StoreUnavailableError):
            receive(app, store, [bad])
    with pytest.raises(JobNotFoundError):
        store.get(uuid.UUID(bad["id"]))
    receive(app, store, [bad])
    assert store.get(uuid.UUID(bad["id"])).state is JobState.FAILED


def test_a_request_that_cannot_even_be_refused_harms_no_other(
    app: CaptionerApp, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = request(), request(prompt="worse than expected")

    def fail_for_it(fields: Any, defaults: Any) -> Any:
        return request_from_message(fields, defaults) if fields is good else 1 // 0

    monkeypatch.setattr(receiving, "request_from_message", fail_for_it)
    assert receive(app, store, [bad, good]) == {"new": 1, "known": 0, "refused": 1}
    assert store.get(uuid.UUID(good["id"])).state is JobState.QUEUED
    failure = store.get(uuid.UUID(bad["id"])).failure
    assert failure
    assert failure.message == "ZeroDivisionError: integer division or modulo by zero"

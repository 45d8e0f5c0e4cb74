from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import text

from captioner.domain import EndpointState
from captioner.errors import EndpointNotFoundError, InvalidRequestError, SettingsError
from captioner.settings import Settings
from captioner.store import Store, create_store_engine, upgrade
from captioner.webhooks.endpoints import (
    JOBS_ENDPOINT_ID,
    add_endpoint,
    jobs_endpoint,
    rotate_secret,
    signing_secrets,
)

URL = "https://hooks.example/in?token=s3cret"


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    engine = create_store_engine(database_url)
    upgrade(engine)
    with Store(engine) as store:
        yield store


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


def test_an_endpoint_is_kept_and_its_secret_encrypted(store: Store, settings: Settings) -> None:
    kinds = ["caption.failed", "video.failed", "caption.failed"]
    endpoint, secret = add_endpoint(store, settings, URL, description="the CMS", event_types=kinds)
    assert store.endpoint(endpoint.id) == endpoint
    assert endpoint.url == URL
    assert endpoint.event_types == ("caption.failed", "video.failed")
    assert endpoint.state is EndpointState.ENABLED
    assert signing_secrets(endpoint, settings) == [secret]
    with store._database.reading() as connection:
        row = connection.execute(text("SELECT * FROM webhook_endpoints")).one()
    assert secret.removeprefix("whsec_") not in str(row)


def test_neither_url_nor_secret_is_shown(store: Store, settings: Settings) -> None:
    endpoint, secret = add_endpoint(store, settings, URL)
    for shown in (repr(endpoint), str(endpoint.as_mapping())):
        assert "s3cret" not in shown
        assert secret not in shown
        assert endpoint.secret not in shown
        assert "https://hooks.example/in?…" in shown


@pytest.mark.parametrize(
    "url", ["", "ftp://x", "https://user:pw@x", "hooks.example", "https://", "https://x/\n"]
)
def test_a_url_that_cannot_be_used_is_refused(store: Store, settings: Settings, url: str) -> None:
    with pytest.raises(InvalidRequestError):
        add_endpoint(store, settings, url)
    assert store.endpoints() == []


def test_an_unknown_type_or_an_odd_description_is_refused(store: Store, settings: Settings) -> None:
    with pytest.raises(InvalidRequestError, match=r"'caption\.done'; there are caption\.succeeded"):
        add_endpoint(store, settings, URL, event_types=["caption.done"])
    for description in ("two\nlines", "NUL\0", "x" * 1001, "\ud800"):
        with pytest.raises(InvalidRequestError, match="description"):
            add_endpoint(store, settings, URL, description=description)
    assert store.endpoints() == []


def test_they_are_listed_oldest_first(store: Store, settings: Settings) -> None:
    made = [add_endpoint(store, settings, f"https://{n}.example")[0] for n in range(3)]
    assert store.endpoints() == made


def test_a_rotated_secret_replaces_the_old_one_at_once(store: Store, settings: Settings) -> None:
    endpoint, old = add_endpoint(store, settings, URL)
    new = rotate_secret(store, settings, endpoint.id)
    assert new != old
    assert signing_secrets(store.endpoint(endpoint.id), settings) == [new]
    assert store.endpoint(endpoint.id).previous_secret is None


def test_or_after_a_while(store: Store, settings: Settings) -> None:
    endpoint, old = add_endpoint(store, settings, URL)
    new = rotate_secret(store, settings, endpoint.id, keep_previous=timedelta(hours=24))
    rotated = store.endpoint(endpoint.id)
    until = rotated.previous_secret_expires_at
    assert until is not None
    assert abs(until - datetime.now(UTC) - timedelta(hours=24)) < timedelta(minutes=1)
    assert signing_secrets(rotated, settings) == [new, old]
    before, after = until - timedelta(seconds=1), until
    assert signing_secrets(rotated, settings, now=before) == [new, old]
    assert signing_secrets(rotated, settings, now=after) == [new]
    newest = rotate_secret(store, settings, endpoint.id, keep_previous=timedelta(hours=1))
    assert signing_secrets(store.endpoint(endpoint.id), settings) == [newest, new]


def test_disabled_and_enabled(store: Store, settings: Settings) -> None:
    endpoint, _ = add_endpoint(store, settings, URL)
    store.endpoint_failed(endpoint.id)
    store.disable_endpoint(endpoint.id, "it was gone")
    disabled = store.endpoint(endpoint.id)
    assert (disabled.state, disabled.disabled_reason) == (EndpointState.DISABLED, "it was gone")
    assert disabled.updated_at > endpoint.updated_at
    store.enable_endpoint(endpoint.id)
    enabled = store.endpoint(endpoint.id)
    assert (enabled.state, enabled.disabled_reason) == (EndpointState.ENABLED, None)
    assert enabled.failing_since is None


def test_the_first_failure_counts_until_it_answers(store: Store, settings: Settings) -> None:
    endpoint, _ = add_endpoint(store, settings, URL)
    first = datetime(2026, 1, 2, tzinfo=UTC)
    for hours in range(3):
        store.endpoint_failed(endpoint.id, now=first + timedelta(hours=hours))
    assert store.endpoint(endpoint.id).failing_since == first
    store.endpoint_answered(endpoint.id)
    assert store.endpoint(endpoint.id).failing_since is None


def test_only_the_one_is_changed(store: Store, settings: Settings) -> None:
    endpoint, _ = add_endpoint(store, settings, URL)
    other, _ = add_endpoint(store, settings, "https://other.example")
    store.endpoint_failed(endpoint.id)
    store.disable_endpoint(endpoint.id, "x")
    rotate_secret(store, settings, endpoint.id)
    store.remove_endpoint(endpoint.id)
    assert store.endpoints() == [other]


def test_an_unknown_endpoint_is_not_found(store: Store, settings: Settings) -> None:
    unknown = uuid4()
    for call in (
        lambda: store.endpoint(unknown),
        lambda: store.enable_endpoint(unknown),
        lambda: store.disable_endpoint(unknown, "x"),
        lambda: store.remove_endpoint(unknown),
        lambda: rotate_secret(store, settings, unknown),
    ):
        with pytest.raises(EndpointNotFoundError, match=str(unknown)):
            call()


def test_the_endpoint_of_all_jobs_is_made_once(store: Store, settings: Settings) -> None:
    add_endpoint(store, settings, URL)
    made = jobs_endpoint(store, settings)
    assert made.id == JOBS_ENDPOINT_ID
    assert jobs_endpoint(store, settings) == made
    assert not store.add_endpoint(made)
    secret = rotate_secret(store, settings, JOBS_ENDPOINT_ID)
    assert signing_secrets(jobs_endpoint(store, settings), settings) == [secret]
    assert len(store.endpoints()) == 2


def test_the_secret_of_all_jobs_is_there_when_it_is_asked_for(
    store: Store, settings: Settings
) -> None:
    secret = rotate_secret(store, settings, JOBS_ENDPOINT_ID)
    assert signing_secrets(jobs_endpoint(store, settings), settings) == [secret]


def test_another_machines_key_is_one_clear_line(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    endpoint, _ = add_endpoint(store, settings, URL)
    elsewhere = Settings(data_dir=tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="no key to read"):
        signing_secrets(endpoint, elsewhere)
    add_endpoint(store, elsewhere, "https://other.example")
    with pytest.raises(SettingsError, match="encrypted with another key"):
        signing_secrets(endpoint, elsewhere)

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import text

from captioner.domain import EndpointState
from captioner.errors import EndpointNotFoundError, InvalidRequestError, SettingsError
from captioner.settings import Settings
from captioner.store import Store, create_store_engine, upgrade
from captioner.webhooks.endpoints import (
    JOBS_ENDPOINT_ID,
    add_endpoint,
    jobs_endpoint,
    reencrypt_secrets,
    rotate_secret,
    secret_of_receiver,
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
        assert "https://hooks.example/…" in shown
        assert "/in" not in shown


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


def test_what_an_attempt_has_seen_long_ago_disables_nothing(
    store: Store, settings: Settings
) -> None:
    endpoint, _ = add_endpoint(store, settings, URL)
    store.endpoint_failed(endpoint.id)
    seen = store.endpoint(endpoint.id)
    store.endpoint_answered(endpoint.id)  # another, while this one waits for an answer
    assert not store.give_up_endpoint(seen, "every delivery has failed")
    assert store.endpoint(endpoint.id).state is EndpointState.ENABLED
    seen = store.endpoint(endpoint.id)
    assert store.give_up_endpoint(seen, "gone")
    disabled = store.endpoint(endpoint.id)
    assert (disabled.state, disabled.disabled_reason) == (EndpointState.DISABLED, "gone")
    assert not store.give_up_endpoint(seen, "gone, too")
    assert store.endpoint(endpoint.id).disabled_reason == "gone"


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


def keyed(folder: Path, *keys: str) -> Settings:
    values = {"data_dir": folder, "webhooks": {"encryption_key": ",".join(keys)}}
    return Settings.model_validate(values)


def test_after_a_rotation_the_old_key_is_not_needed(store: Store, tmp_path: Path) -> None:
    old_key, new_key = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    endpoint, old = add_endpoint(store, keyed(tmp_path, old_key), URL)
    both, newest = keyed(tmp_path, new_key, old_key), keyed(tmp_path, new_key)
    new = rotate_secret(store, both, endpoint.id, keep_previous=timedelta(hours=1))
    assert signing_secrets(store.endpoint(endpoint.id), newest) == [new, old]


def test_a_secret_whose_key_is_lost_can_be_replaced_but_not_kept(
    store: Store, tmp_path: Path
) -> None:
    lost, found = keyed(tmp_path, Fernet.generate_key().decode()), keyed(tmp_path / "other")
    endpoint, _ = add_endpoint(store, lost, URL)
    with pytest.raises(SettingsError, match="another key"):
        rotate_secret(store, found, endpoint.id, keep_previous=timedelta(hours=1))
    assert store.endpoint(endpoint.id) == endpoint
    new = rotate_secret(store, found, endpoint.id)
    assert signing_secrets(store.endpoint(endpoint.id), found) == [new]


def test_secrets_are_encrypted_anew_without_being_changed(store: Store, tmp_path: Path) -> None:
    old_key, new_key = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    old = keyed(tmp_path, old_key)
    one, secret = add_endpoint(store, old, URL)
    two, previous = add_endpoint(store, old, URL)
    kept = rotate_secret(store, old, two.id, keep_previous=timedelta(hours=1))
    three, _ = add_endpoint(store, old, URL)
    current = rotate_secret(store, old, three.id, keep_previous=timedelta(microseconds=1))
    told = signing_secrets(jobs_endpoint(store, old), old, url=URL)

    assert reencrypt_secrets(store, keyed(tmp_path, new_key, old_key)) == 4

    newest = keyed(tmp_path, new_key)
    found = [signing_secrets(store.endpoint(id_), newest) for id_ in (one.id, two.id, three.id)]
    assert found == [[secret], [kept, previous], [current]]
    assert signing_secrets(jobs_endpoint(store, newest), newest, url=URL) == told
    assert store.endpoint(three.id).previous_secret is None
    with pytest.raises(SettingsError, match="another key"):
        reencrypt_secrets(store, keyed(tmp_path, Fernet.generate_key().decode()))


def test_who_rotates_at_once_loses_no_secret(store: Store, settings: Settings) -> None:
    endpoint, _ = add_endpoint(store, settings, URL)
    with ThreadPoolExecutor(4) as pool:
        made = set(
            pool.map(
                lambda _: rotate_secret(
                    store, settings, endpoint.id, keep_previous=timedelta(hours=1)
                ),
                range(8),
            )
        )
    assert len(made) == 8
    assert set(signing_secrets(store.endpoint(endpoint.id), settings)) < made
    assert not store.replace_endpoint_secret(endpoint, "x", previous=None, previous_until=None)


def test_the_endpoint_of_all_jobs_is_made_once(store: Store, settings: Settings) -> None:
    add_endpoint(store, settings, URL)
    made = jobs_endpoint(store, settings)
    assert made.id == JOBS_ENDPOINT_ID
    assert jobs_endpoint(store, settings) == made
    assert not store.add_endpoint(made)
    assert len(store.endpoints()) == 2


def test_each_receiver_of_jobs_has_a_secret_of_its_own(store: Store, settings: Settings) -> None:
    urls = ["https://a.example/hook", "https://b.example/hook", "https://a.example/other"]
    secrets = [secret_of_receiver(store, settings, url) for url in urls]
    assert len(set(secrets)) == 3
    root = rotate_secret(store, settings, JOBS_ENDPOINT_ID, keep_previous=timedelta(hours=1))
    endpoint = jobs_endpoint(store, settings)
    for url, old in zip(urls, secrets, strict=True):
        new = secret_of_receiver(store, settings, url)
        assert signing_secrets(endpoint, settings, url=f"{url}?job=17") == [new, old]
        assert root not in (new, old)
    for url in ("", "no url", "ftp://a.example/", "https://08.1.1.1/", "https://1.2.3.400/"):
        with pytest.raises(ValueError):
            signing_secrets(endpoint, settings, url=url)
        with pytest.raises(InvalidRequestError):
            secret_of_receiver(store, settings, url)


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

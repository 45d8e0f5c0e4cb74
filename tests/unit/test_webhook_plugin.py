"""The plugin alone: whom it names, and what one attempt does, over real connections."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner import DeliveryError, Event, Job, JobState, Receipt
from captioner.domain import EndpointState, Lane
from captioner.events import event_type
from captioner.media import post_http
from captioner.plugins import Plugins
from captioner.settings import Settings
from captioner.store import Store, create_store_engine, upgrade
from captioner.testing import registered_plugin
from captioner.webhooks import sending, verify
from captioner.webhooks.body import webhook_body
from captioner.webhooks.encryption import KEY_FILE, SecretCipher
from captioner.webhooks.endpoints import (
    JOBS_ENDPOINT_ID,
    add_endpoint,
    jobs_endpoint,
    rotate_secret,
    secret_of_receiver,
    signing_secrets,
)
from captioner.webhooks.sending import retry_after_seconds
from captioner.webhooks.trial import send_test
from captioner_webhook import Webhooks, message_id
from receivers import Answer, Receiver, in_turn
from servers import free_port
from stored import claimed, success

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    engine = create_store_engine(sqlite_url)
    upgrade(engine)
    with Store(engine) as store:
        yield store


def settings_for(folder: Path, **webhooks: Any) -> Settings:
    values = {"media": {"allowed_hosts": "127.0.0.1:*"}, "webhooks": webhooks}
    return Settings.model_validate({"data_dir": folder, **values})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_for(tmp_path)


@pytest.fixture
def plugin(settings: Settings) -> Webhooks:
    return Webhooks(settings)


def ended(store: Store, **values: Any) -> tuple[Event, Job]:
    (running,) = claimed(store, **values)
    store.record([success(running)])
    job = store.get(running.id)
    return event_of(job), job


def event_of(job: Job, event_id: int = 1) -> Event:
    return Event(
        id=event_id,
        job_id=job.id,
        type=event_type(job.state, job.lane),
        state=job.state,
        attempt=job.attempt,
        occurred_at=NOW,
    )


def failure(plugin: Webhooks, event: Event, job: Job, target: str, store: Store) -> DeliveryError:
    with pytest.raises(DeliveryError) as raised:
        plugin.deliver_event(event, job, target, store)
    return raised.value


# --- Whom it names --------------------------------------------------------------------------------


def test_a_key_that_cannot_be_used_is_told_when_the_worker_begins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugins = Plugins()
    plugins.register(Webhooks(), "webhook")
    with caplog.at_level(logging.WARNING):
        plugins.notify("worker_ready", settings=settings_for(tmp_path))
        assert not caplog.records
        plugins.notify("worker_ready", settings=settings_for(tmp_path, encryption_key="hunter2"))
        (tmp_path / KEY_FILE).write_text("hunter2")
        (tmp_path / KEY_FILE).chmod(0o600)
        plugins.notify("worker_ready", settings=settings_for(tmp_path))
    wrong_setting, damaged_file = (one.getMessage() for one in caplog.records)
    assert wrong_setting.startswith(
        "no webhook can be signed: CAPTIONER_WEBHOOKS__ENCRYPTION_KEY must be keys as"
    )
    assert damaged_file.startswith(
        f"no webhook can be signed: {tmp_path / KEY_FILE} is damaged: it holds no key"
    )
    assert not plugins.errors.totals()


def test_the_endpoints_that_want_the_event_are_named(
    plugin: Webhooks, store: Store, settings: Settings
) -> None:
    everything, _ = add_endpoint(store, settings, "https://a.example")
    wanted, _ = add_endpoint(
        store, settings, "https://b.example", event_types=["caption.succeeded", "video.failed"]
    )
    add_endpoint(store, settings, "https://c.example", event_types=["caption.failed"])
    disabled, _ = add_endpoint(store, settings, "https://d.example")
    store.disable_endpoint(disabled.id, "by hand")
    jobs_endpoint(store, settings)
    event, job = ended(store)
    assert plugin.event_targets(event, job, store) == [
        f"endpoint:{everything.id}",
        f"endpoint:{wanted.id}",
    ]


def test_videos_are_told_from_pictures(plugin: Webhooks, store: Store, settings: Settings) -> None:
    videos, _ = add_endpoint(store, settings, "https://a.example", event_types=["video.succeeded"])
    assert plugin.event_targets(*ended(store), store) == []
    assert plugin.event_targets(*ended(store, lane=Lane.VIDEO), store) == [f"endpoint:{videos.id}"]


def test_a_jobs_own_receiver_is_named_by_its_host(plugin: Webhooks, store: Store) -> None:
    first = ended(store, webhook_url="https://CMS.example:8443/hooks/s3cret?token=s3cret#s3cret")
    (target,) = plugin.event_targets(*first, store)
    assert target == "url:https://cms.example:8443"
    long = ended(store, webhook_url=f"https://{'a.' * 150}example/")
    (target,) = plugin.event_targets(*long, store)
    assert len(target) < 255
    assert plugin.event_targets(*long, store) == [target]


@pytest.mark.parametrize(
    ("spellings", "target"),
    [
        (
            ["https://cms.example", "HTTPS://CMS.example/a", "https://cms.example.:443/?b",
             "https://cms.example:0443/", "https://CMS.EXAMPLE../"],
            "url:https://cms.example",
        ),
        (
            ["http://127.0.0.1/", "http://0x7f.1/", "http://2130706433/", "http://127.1:80/",
             "http://017700000001/", "http://[::ffff:127.0.0.1]/", "http://[::FFFF:7f00:1]:80/",
             "http://[0:0:0:0:0:ffff:127.0.0.1]/", "http://127.0.0.1./"],
            "url:http://127.0.0.1",
        ),
        (["http://[::1]:8080", "http://[0:0::0001]:8080/"], "url:http://[::1]:8080"),
    ],
)  # fmt: skip
def test_however_it_is_spelled_a_host_is_one_target(
    plugin: Webhooks, store: Store, spellings: list[str], target: str
) -> None:
    for url in spellings:
        assert plugin.event_targets(*ended(store, webhook_url=url), store) == [target], url


def test_a_url_that_no_job_could_have_today_is_given_up(
    plugin: Webhooks, store: Store, settings: Settings
) -> None:
    event, job = ended(store, webhook_url="https://cms.example/")
    job = dataclasses.replace(job, webhook_url="https://cms%2eexample/s3cret")
    (target,) = plugin.event_targets(event, job, store)
    error = failure(plugin, event, job, target, store)
    assert error.permanent
    assert "s3cret" not in f"{target} {error}"


def test_webhook_urls_of_jobs_can_be_disabled(
    plugin: Webhooks, store: Store, settings: Settings
) -> None:
    jobs_endpoint(store, settings)
    event, job = ended(store, webhook_url="https://cms.example/hook")
    store.disable_endpoint(JOBS_ENDPOINT_ID, "by hand")
    assert plugin.event_targets(event, job, store) == []
    store.enable_endpoint(JOBS_ENDPOINT_ID)
    assert len(plugin.event_targets(event, job, store)) == 1


# --- One attempt ----------------------------------------------------------------------------------


def test_an_event_is_posted_signed_and_answered(
    plugin: Webhooks, store: Store, settings: Settings
) -> None:
    with Receiver(lambda *_: Answer(201, body="café\0 \x1b[31m".encode())) as receiver:
        _, secret = add_endpoint(store, settings, f"{receiver.url}/in?token=t")
        event, job = ended(store)
        (target,) = plugin.event_targets(event, job, store)
        receipt = plugin.deliver_event(event, job, target, store)
    assert receipt == Receipt(status=201, excerpt="café� �[31m")
    (request,) = receiver.received
    assert request.path == "/in?token=t"
    assert request.body == webhook_body(event, job)
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("captioner/")
    assert request.verified_by(secret)
    verified = verify(request.headers, request.body, secret)
    assert verified.id == message_id(event, target)
    assert abs(verified.sent_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_the_id_is_that_of_event_and_target(store: Store) -> None:
    event, job = ended(store)
    other, _ = ended(store)
    targets = [f"endpoint:{uuid4()}", f"endpoint:{uuid4()}"]
    made = {message_id(one, target) for one in (event, other) for target in targets}
    made |= {message_id(event_of(job, event_id=2), targets[0])}
    assert len(made) == 5
    assert all("." not in one and len(one) <= 64 for one in made)
    assert message_id(event_of(job), targets[0]) == message_id(event, targets[0])


def test_repeated_it_has_the_same_id_and_body_and_a_timestamp_of_its_own(
    plugin: Webhooks, store: Store, settings: Settings
) -> None:
    with Receiver(in_turn(Answer(500), Answer(503))) as receiver:
        _, secret = add_endpoint(store, settings, receiver.url)
        event, job = ended(store)
        (target,) = plugin.event_targets(event, job, store)
        failure(plugin, event, job, target, store)
        second = int(time.time())
        while int(time.time()) == second:
            time.sleep(0.01)
        failure(plugin, event, job, target, store)
        plugin.deliver_event(event, job, target, store)
    assert [one.status for one in receiver.received] == [500, 503, 204]
    assert len({one.id for one in receiver.received}) == 1
    assert len({one.body for one in receiver.received}) == 1
    assert len({one.headers["webhook-timestamp"] for one in receiver.received}) == 2
    assert all(one.verified_by(secret) for one in receiver.received)


def test_while_the_secret_changes_both_sign(
    plugin: Webhooks, store: Store, settings: Settings
) -> None:
    with Receiver() as receiver:
        endpoint, old = add_endpoint(store, settings, receiver.url)
        event, job = ended(store)
        (target,) = plugin.event_targets(event, job, store)
        new = rotate_secret(store, settings, endpoint.id, keep_previous=timedelta(hours=1))
        plugin.deliver_event(event, job, target, store)
        newest = rotate_secret(store, settings, endpoint.id)
        plugin.deliver_event(event, job, target, store)
    first, second = receiver.received
    assert (first.verified_by(old), first.verified_by(new)) == (True, True)
    assert [second.verified_by(one) for one in (old, new, newest)] == [False, False, True]


def test_the_receiver_of_a_job_is_told_with_a_secret_of_its_own(
    plugin: Webhooks, store: Store, settings: Settings
) -> None:
    with Receiver() as receiver:
        url = f"{receiver.url}/jobs?token=s3cret"
        secret = secret_of_receiver(store, settings, url)
        event, job = ended(store, webhook_url=url)
        (target,) = plugin.event_targets(event, job, store)
        assert plugin.deliver_event(event, job, target, store).status == 204
    (request,) = receiver.received
    assert request.path == "/jobs?token=s3cret"
    assert request.verified_by(secret)
    assert b"s3cret" not in request.body


def test_what_one_receiver_got_is_believed_by_no_other(
    plugin: Webhooks, store: Store, settings: Settings
) -> None:
    """Whoever may submit jobs has webhooks signed for a receiver of his, and repeats them."""
    with Receiver() as his, Receiver() as victim:
        event, job = ended(store, webhook_url=f"{his.url}/hook")
        (target,) = plugin.event_targets(event, job, store)
        plugin.deliver_event(event, job, target, store)
        _, registered_secret = add_endpoint(store, settings, f"{victim.url}/hook")
        theirs = secret_of_receiver(store, settings, f"{victim.url}/hook")
        neighbours = secret_of_receiver(store, settings, f"{his.url}/neighbour")
    (request,) = his.received
    assert request.verified_by(secret_of_receiver(store, settings, f"{his.url}/hook?x"))
    root = SecretCipher([(settings.data_dir / KEY_FILE).read_text()]).decrypt(
        store.endpoint(JOBS_ENDPOINT_ID).secret
    )
    for secret in (theirs, neighbours, registered_secret, root):
        assert not request.verified_by(secret)


def test_while_the_secrets_of_jobs_change_both_sign(
    plugin: Webhooks, store: Store, settings: Settings
) -> None:
    with Receiver() as receiver:
        old = secret_of_receiver(store, settings, receiver.url)
        rotate_secret(store, settings, JOBS_ENDPOINT_ID, keep_previous=timedelta(hours=1))
        new = secret_of_receiver(store, settings, receiver.url)
        event, job = ended(store, webhook_url=receiver.url)
        (target,) = plugin.event_targets(event, job, store)
        plugin.deliver_event(event, job, target, store)
    (request,) = receiver.received
    assert old != new
    assert (request.verified_by(old), request.verified_by(new)) == (True, True)


def test_unsigned_is_never_sent(plugin: Webhooks, store: Store) -> None:
    with Receiver() as receiver:
        event, job = ended(store, webhook_url=receiver.url)
        (target,) = plugin.event_targets(event, job, store)
        plugin.deliver_event(event, job, target, store)
    assert receiver.received[0].headers["webhook-signature"].startswith("v1,")


# --- What answers mean ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 429, 500, 502, 504])
def test_anything_but_2xx_has_failed_and_redirects_are_not_followed(
    plugin: Webhooks, store: Store, settings: Settings, status: int
) -> None:
    answer = Answer(status, (("Location", "/elsewhere"),), b"no" * 5_000)
    with Receiver(lambda *_: answer) as receiver:
        endpoint, _ = add_endpoint(store, settings, f"{receiver.url}/in?token=s3cret")
        event, job = ended(store)
        error = failure(plugin, event, job, f"endpoint:{endpoint.id}", store)
    assert len(receiver.received) == 1
    assert (error.status, error.permanent, error.retry_after_seconds) == (status, False, None)
    assert str(status) in str(error)
    assert error.excerpt == "no" * 512
    assert "s3cret" not in f"{error} {error.__cause__!r}"
    assert store.endpoint(endpoint.id).state is EndpointState.ENABLED


@pytest.mark.parametrize("status", [429, 503, 500])
def test_retry_after_is_passed_on(
    plugin: Webhooks, store: Store, settings: Settings, status: int
) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    answers = in_turn(*(Answer(status, (("Retry-After", text),)) for text in ("120", later, "?")))
    with Receiver(answers) as receiver:
        endpoint, _ = add_endpoint(store, settings, receiver.url)
        event, job = ended(store)
        errors = [failure(plugin, event, job, f"endpoint:{endpoint.id}", store) for _ in range(3)]
    assert errors[0].retry_after_seconds == 120
    assert 3500 < (errors[1].retry_after_seconds or 0) <= 3600
    assert errors[2].retry_after_seconds is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("0", 0),
        (" 007 ", 7),
        ("9" * 5_000, 10**9),
        ("Fri, 02 Jan 2026 12:01:00 GMT", 60),
        ("Fri, 02 Jan 2026 12:01:00 -0000", 60),
        ("Fri, 02 Jan 2026 13:01:00 +0100", 60),
        ("Fri, 02 Jan 2026 11:00:00 GMT", 0),
        ("Fri, 99 Foo 2026 11:00:00 GMT", None),
        ("Fri, 02 Jan 9999 12:00:00 GMT", 10**9),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 10**9),
        ("Fri, 02 Jan 2026 11:00:00 +9999999999", None),
        ("Fri, 02 Jan 2026 11:00:00 +" + "9" * 30, None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, NOW) == seconds


@given(value=st.text())
def test_no_retry_after_is_too_odd(value: str) -> None:
    seconds = retry_after_seconds(value, NOW)
    assert seconds is None or seconds >= 0


def test_who_is_gone_is_disabled(
    plugin: Webhooks, store: Store, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with Receiver(lambda *_: Answer(410)) as receiver:
        endpoint, _ = add_endpoint(store, settings, f"{receiver.url}/s3cret")
        event, job = ended(store)
        target = f"endpoint:{endpoint.id}"
        with caplog.at_level(logging.WARNING):
            error = failure(plugin, event, job, target, store)
        assert (error.status, error.permanent) == (410, True)
        gone = store.endpoint(endpoint.id)
        assert gone.state is EndpointState.DISABLED
        assert "410" in (gone.disabled_reason or "")
        assert f"captioner webhooks enable {endpoint.id}" in caplog.text
        assert "s3cret" not in caplog.text
        assert plugin.event_targets(event, job, store) == []
        again = failure(plugin, event, job, target, store)
        assert again.permanent
        assert "disabled" in str(again)
    assert len(receiver.received) == 1


def test_that_a_jobs_own_receiver_is_gone_concerns_nobody_else(
    plugin: Webhooks, store: Store, settings: Settings
) -> None:
    with Receiver(lambda path, _: Answer(410 if path == "/a" else 204)) as receiver:
        event, job = ended(store, webhook_url=f"{receiver.url}/a")
        (target,) = plugin.event_targets(event, job, store)
        assert failure(plugin, event, job, target, store).permanent
        assert jobs_endpoint(store, settings).state is EndpointState.ENABLED
        event, job = ended(store, webhook_url=f"{receiver.url}/b")
        assert plugin.deliver_event(event, job, target, store).status == 204


def test_who_fails_for_days_is_disabled(store: Store, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, disable_after_days=2)
    plugin = Webhooks(settings)
    with Receiver(in_turn(*[Answer(500)] * 3)) as receiver:
        endpoint, _ = add_endpoint(store, settings, receiver.url)
        event, job = ended(store)
        target = f"endpoint:{endpoint.id}"
        failure(plugin, event, job, target, store)
        since = store.endpoint(endpoint.id).failing_since
        assert since is not None
        failure(plugin, event, job, target, store)
        assert store.endpoint(endpoint.id).failing_since == since
        age(store, endpoint.id, timedelta(days=2))
        failure(plugin, event, job, target, store)
    disabled = store.endpoint(endpoint.id)
    assert disabled.state is EndpointState.DISABLED
    assert "every delivery has failed since" in (disabled.disabled_reason or "")


def test_who_answers_now_and_then_is_not_disabled(store: Store, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, disable_after_days=2)
    plugin = Webhooks(settings)
    with Receiver(in_turn(Answer(500), Answer(200), Answer(500))) as receiver:
        endpoint, _ = add_endpoint(store, settings, receiver.url)
        event, job = ended(store)
        target = f"endpoint:{endpoint.id}"
        failure(plugin, event, job, target, store)
        age(store, endpoint.id, timedelta(days=30))
        plugin.deliver_event(event, job, target, store)
        assert store.endpoint(endpoint.id).failing_since is None
        failure(plugin, event, job, target, store)
    assert store.endpoint(endpoint.id).state is EndpointState.ENABLED


def test_without_such_a_time_nobody_is_disabled(store: Store, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, disable_after_days=0)
    with Receiver(lambda *_: Answer(500)) as receiver:
        endpoint, _ = add_endpoint(store, settings, receiver.url)
        event, job = ended(store)
        age(store, endpoint.id, timedelta(days=365))
        failure(Webhooks(settings), event, job, f"endpoint:{endpoint.id}", store)
    assert store.endpoint(endpoint.id).state is EndpointState.ENABLED


def age(store: Store, endpoint_id: UUID, by: timedelta) -> None:
    """Let an endpoint have failed for so long."""
    store.endpoint_answered(endpoint_id)
    store.endpoint_failed(endpoint_id, now=datetime.now(UTC) - by)


# --- What cannot be delivered ---------------------------------------------------------------------


def test_nobody_there_is_tried_again(plugin: Webhooks, store: Store, settings: Settings) -> None:
    url = f"http://127.0.0.1:{free_port()}/s3cret?token=s3cret"
    endpoint, _ = add_endpoint(store, settings, url)
    error = failure(plugin, *ended(store), f"endpoint:{endpoint.id}", store)
    assert (error.permanent, error.status) == (False, None)
    assert "s3cret" not in str(error)
    assert store.endpoint(endpoint.id).failing_since is not None


def test_a_private_address_is_not_posted_to(store: Store, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    with Receiver() as receiver:
        endpoint, _ = add_endpoint(store, settings, receiver.url)
        failure(Webhooks(settings), *ended(store), f"endpoint:{endpoint.id}", store)
    assert receiver.received == []


def test_a_slow_receiver_is_given_up(store: Store, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, timeout_seconds=0.3)
    enough = threading.Event()

    def slowly(*_: object) -> Answer:
        enough.wait(60)
        return Answer()

    with Receiver(slowly) as receiver:
        endpoint, _ = add_endpoint(store, settings, receiver.url)
        error = failure(Webhooks(settings), *ended(store), f"endpoint:{endpoint.id}", store)
        enough.set()
        receiver.wait_for(1)
    assert not error.permanent
    assert "0.3" in str(error)


def test_by_default_it_has_15_seconds_and_4_kib_of_the_answer_are_read(
    plugin: Webhooks, store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def post(url: str, **values: Any) -> Any:
        asked.append(values)
        answer = post_http(url, **values)
        assert len(answer.body) == 4096
        return answer

    monkeypatch.setattr(sending, "post_http", post)
    with Receiver(lambda *_: Answer(200, (), b"x" * 100_000)) as receiver:
        endpoint, _ = add_endpoint(store, settings, receiver.url)
        event, job = ended(store)
        plugin.deliver_event(event, job, f"endpoint:{endpoint.id}", store)
    (values,) = asked
    assert values["deadline_seconds"] == 15
    assert values["max_response_bytes"] == 4096


def test_an_attempt_ends_before_it_is_taken_for_a_hang(store: Store, tmp_path: Path) -> None:
    values = {"media": {"allowed_hosts": "127.0.0.1:*"}, "events": {"attempt_timeout_seconds": 0.5}}
    settings = Settings.model_validate({"data_dir": tmp_path, **values})
    enough = threading.Event()

    def slowly(*_: object) -> Answer:
        enough.wait(60)
        return Answer()

    with Receiver(slowly) as receiver:
        endpoint, _ = add_endpoint(store, settings, receiver.url)
        error = failure(Webhooks(settings), *ended(store), f"endpoint:{endpoint.id}", store)
        enough.set()
        receiver.wait_for(1)
    assert "0.45" in str(error)


def test_an_endpoint_that_was_removed(plugin: Webhooks, store: Store, settings: Settings) -> None:
    endpoint, _ = add_endpoint(store, settings, "https://a.example")
    store.remove_endpoint(endpoint.id)
    error = failure(plugin, *ended(store), f"endpoint:{endpoint.id}", store)
    assert error.permanent
    assert "removed" in str(error)


def test_another_machines_key_is_said_and_tried_again(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    endpoint, _ = add_endpoint(store, settings, "https://a.example")
    elsewhere = Webhooks(settings_for(tmp_path / "elsewhere"))
    error = failure(elsewhere, *ended(store), f"endpoint:{endpoint.id}", store)
    assert not error.permanent
    assert "CAPTIONER_WEBHOOKS__ENCRYPTION_KEY" in str(error)
    assert store.endpoint(endpoint.id).failing_since is None  # it is not the receiver's fault


# --- Trials, and as a plugin ----------------------------------------------------------------------


def test_a_trial_is_a_webhook_of_its_own_type(store: Store, settings: Settings) -> None:
    with Receiver(in_turn(Answer(200, body=b"thanks"), Answer(410))) as receiver:
        endpoint, secret = add_endpoint(store, settings, receiver.url)
        assert send_test(store, settings, endpoint.id) == Receipt(status=200, excerpt="thanks")
        with pytest.raises(DeliveryError):
            send_test(store, settings, endpoint.id)
    assert store.endpoint(endpoint.id).state is EndpointState.ENABLED
    assert all(one.verified_by(secret) for one in receiver.received)
    assert b'"type":"webhook.test"' in receiver.received[0].body
    assert len({one.id for one in receiver.received}) == 2


def test_it_registers_without_reading_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTIONER_WEBHOOKS__TIMEOUT_SECONDS", "never")
    plugins = Plugins()
    with registered_plugin(plugins, Webhooks(), "webhook"):
        (info,) = plugins.infos()
        assert info.hooks == ("deliver_event", "event_targets", "worker_ready")


def test_its_settings_are_the_environments(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTIONER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CAPTIONER_MEDIA__ALLOWED_HOSTS", "127.0.0.1:*")
    with Receiver() as receiver:
        event, job = ended(store, webhook_url=receiver.url)
        plugin = Webhooks()
        (target,) = plugin.event_targets(event, job, store)
        plugin.deliver_event(event, job, target, store)
    (secret,) = signing_secrets(jobs_endpoint(store, Settings()), Settings(), url=receiver.url)
    assert receiver.received[0].verified_by(secret)


def test_jobs_that_did_not_succeed_are_told_too(
    plugin: Webhooks, store: Store, settings: Settings
) -> None:
    with Receiver() as receiver:
        add_endpoint(store, settings, receiver.url, event_types=["caption.canceled"])
        (running,) = claimed(store)
        store.cancel([running.id])
        job = store.get(running.id)
        assert job.state is JobState.CANCELED
        (target,) = plugin.event_targets(event_of(job), job, store)
        plugin.deliver_event(event_of(job), job, target, store)
    assert b'"type":"caption.canceled"' in receiver.received[0].body

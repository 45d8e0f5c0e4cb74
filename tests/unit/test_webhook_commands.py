"""`captioner webhooks`, in this process, over a database of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from captioner.cli import main
from captioner.deliveries import AttemptEnd, Expansion, NewDelivery
from captioner.domain import EndpointState
from captioner.events import DeliveryState
from captioner.settings import Settings
from captioner.store import Store, open_store
from captioner.webhooks.endpoints import JOBS_ENDPOINT_ID, endpoint_target, signing_secrets
from receivers import Answer, Receiver, in_turn
from stored import claimed, success

URL = "https://hooks.example/in?token=s3cret"


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("CAPTIONER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CAPTIONER_MEDIA__ALLOWED_HOSTS", "127.0.0.1:*")
    return Settings()


@pytest.fixture
def run(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    monkeypatch.setattr("captioner.cli.webhooks.naming.configure_logging", lambda _: None)

    def run(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as ended:
            main(["webhooks", *arguments])
        captured = capsys.readouterr()
        assert "s3cret" not in captured.out + captured.err
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    return run


def test_an_endpoint_from_its_beginning_to_its_end(run: Run, settings: Settings) -> None:
    assert "no receivers yet" in run("list").err
    added = run(
        "add", URL, "--description", "the [red]CMS", "--events", "caption.failed, video.failed"
    )
    assert added.code == 0
    _, endpoint_id, _, secret = added.out.split()
    with open_store(settings) as store:
        (endpoint,) = store.endpoints()
    assert str(endpoint.id) == endpoint_id
    assert endpoint.url == URL
    assert signing_secrets(endpoint, settings) == [secret]

    listed = run("list").out
    for shown in (endpoint_id, "enabled", "https://hooks.example/…", "the [red]CMS"):
        assert shown in listed
    assert "caption.failed, video.failed" in listed
    assert secret not in listed + run("list", "--json").out

    assert run("disable", endpoint_id).code == 0
    (entry,) = run("list", "--json").json
    assert (entry["state"], entry["disabled_reason"]) == ("disabled", "by hand")
    assert run("enable", endpoint_id).code == 0
    assert run("list", "--json").json[0]["state"] == "enabled"

    assert run("remove", endpoint_id).code == 0
    assert run("list", "--json").json == []


def test_programs_get_the_secret_once_too(run: Run, settings: Settings) -> None:
    added = run("add", URL, "--json").json
    rotated = run("rotate", added["id"], "--keep-previous", "24h", "--json").json
    assert added["secret"] != rotated["secret"]
    until = datetime.fromisoformat(rotated["previous_secret_expires_at"])
    assert timedelta(hours=23) < until - datetime.now(UTC) <= timedelta(hours=24)
    with open_store(settings) as store:
        (endpoint,) = store.endpoints()
    assert signing_secrets(endpoint, settings) == [rotated["secret"], added["secret"]]
    assert all("secret" not in entry for entry in run("list", "--json").json)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("90s", timedelta(seconds=90)), ("30m", timedelta(minutes=30)), ("7d", timedelta(days=7))],
)
def test_times(run: Run, given: str, wanted: timedelta) -> None:
    endpoint_id = run("add", URL, "--json").json["id"]
    rotated = run("rotate", endpoint_id, "--keep-previous", given, "--json").json
    left = datetime.fromisoformat(rotated["previous_secret_expires_at"]) - datetime.now(UTC)
    assert wanted - timedelta(minutes=1) < left <= wanted


@pytest.mark.parametrize("given", ["24", "h", "1.5h", "-1h", "tomorrow", ""])
def test_what_is_no_time(run: Run, given: str) -> None:
    endpoint_id = run("add", URL, "--json").json["id"]
    refused = run("rotate", endpoint_id, "--keep-previous", given)
    assert (refused.code, refused.out) == (2, "")
    assert "such as 24h, 30m or 7d" in refused.err


def test_the_jobs_own_receivers(run: Run, settings: Settings) -> None:
    rotated = run("rotate", "jobs", "--json").json
    assert (rotated["id"], "secret" in rotated) == ("jobs", False)
    (entry,) = run("list", "--json").json
    assert entry["id"] == "jobs"
    assert run("disable", "jobs").code == 0
    assert run("list", "--json").json[0]["state"] == "disabled"
    assert run("enable", "jobs").code == 0
    for arguments in (("remove", "jobs"), ("test", "jobs"), ("deliveries", "jobs")):
        assert run(*arguments).code == 2


def test_the_secret_of_a_jobs_receiver_is_shown_whenever_it_is_asked_for(
    run: Run, settings: Settings
) -> None:
    shown = run("secret", "https://CMS.example:443/hooks/s3cret?token=s3cret")
    assert shown.code == 0
    assert re.fullmatch(r"receiver  https://cms.example:443/…\nsecret    whsec_\S+\n", shown.out)
    secret = shown.out.split()[-1]
    again = run("secret", "https://cms.example/hooks/s3cret", "--json").json
    assert again == {"url": "https://cms.example/…", "secret": secret}
    with open_store(settings) as store:
        endpoint = store.endpoint(JOBS_ENDPOINT_ID)
    assert signing_secrets(endpoint, settings, url="https://cms.example/hooks/s3cret") == [secret]
    assert run("secret", "https://cms.example/other", "--json").json["secret"] != secret
    assert "captioner webhooks secret URL" in run("rotate", "jobs").out
    assert run("secret", "https://cms.example/hooks/s3cret", "--json").json["secret"] != secret


def test_an_encryption_key_is_replaced(
    run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (run("new-key").out.strip() for _ in range(2))
    monkeypatch.setenv("CAPTIONER_WEBHOOKS__ENCRYPTION_KEY", old)
    secret = run("secret", URL, "--json").json["secret"]
    added = run("add", URL, "--json").json
    monkeypatch.setenv("CAPTIONER_WEBHOOKS__ENCRYPTION_KEY", f"{new},{old}")
    assert run("reencrypt").out.startswith("2 endpoints")
    monkeypatch.setenv("CAPTIONER_WEBHOOKS__ENCRYPTION_KEY", new)
    assert run("secret", URL, "--json").json["secret"] == secret
    with open_store(settings) as store:
        endpoint = store.endpoint(UUID(added["id"]))
    assert signing_secrets(endpoint, Settings()) == [added["secret"]]


def test_the_jobs_own_receivers_are_disabled_before_there_was_one(
    run: Run, settings: Settings
) -> None:
    assert run("disable", "jobs").code == 0
    with open_store(settings) as store:
        assert store.endpoint(JOBS_ENDPOINT_ID).state is EndpointState.DISABLED


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("add", "https://u:s3cret@x.example"), 2, "user name or a password"),
        (("add", "x.example"), 2, "https://host/path"),
        (("secret", "https://u:s3cret@x.example"), 2, "user name or a password"),
        (("secret", "s3cret"), 2, "https://host/path"),
        (("add", URL, "--events", "done"), 2, "caption.succeeded"),
        (("rotate", "nope"), 1, "captioner webhooks list"),
        (("remove", "7d0c1f6e-2f6b-4bd0-9f0e-000000000000"), 1, "no webhook endpoint"),
        (("test", "7d0c1f6e-2f6b-4bd0-9f0e-000000000000"), 1, "no webhook endpoint"),
        (("deliveries", "7d0c1f6e-2f6b-4bd0-9f0e-000000000000"), 1, "no webhook endpoint"),
        (("redeliver",), 2, "--dead"),
        (("redeliver", "1", "--dead"), 2, "--dead"),
        (("redeliver", "1", "--endpoint", "x"), 2, "--dead"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    run: Run, arguments: tuple[str, ...], code: int, text: str
) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (code, "")
    assert text in done.err
    assert done.err.count("\n") == 1


def test_a_trial(run: Run) -> None:
    with Receiver(in_turn(Answer(200, body=b"thanks"), Answer(500, body=b"oh"))) as receiver:
        added = run("add", f"{receiver.url}/in?token=s3cret", "--json").json
        good = run("test", added["id"])
        bad = run("test", added["id"])
        told = run("test", added["id"], "--json")
    assert (good.code, good.out) == (0, "answered with HTTP status 200\nthanks\n")
    assert (bad.code, bad.out) == (1, "answered with HTTP status 500\noh\n")
    assert told.json == {"status": 204, "excerpt": "", "error": None}
    assert all(one.verified_by(added["secret"]) for one in receiver.received)


def test_a_new_key_is_one(run: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    key = run("new-key").out.strip()
    monkeypatch.setenv("CAPTIONER_WEBHOOKS__ENCRYPTION_KEY", key)
    added = run("add", URL, "--json").json
    with open_store(settings) as store:
        (endpoint,) = store.endpoints()
    assert signing_secrets(endpoint, Settings()) == [added["secret"]]
    assert not (settings.data_dir / "webhooks.key").exists()


def dead(store: Store, target: str, plugin: str = "webhook") -> int:
    """A delivery that was given up."""
    (job,) = claimed(store)
    store.record([success(job)])
    (event_id,) = store.unexpanded(1)
    now = datetime.now(UTC)
    new = NewDelivery(plugin=plugin, target=target, due_at=now)
    store.expand([Expansion(event_id, (new,))])
    (delivery,) = store.claim_deliveries("w", 1, 60)
    end = AttemptEnd(
        delivery=delivery,
        started_at=now,
        duration_seconds=0.5,
        state=DeliveryState.DEAD,
        due_at=now,
        status=500,
        error="answered with HTTP status 500",
    )
    assert store.record_attempts("w", [end]) == {delivery.id}
    return delivery.id


def test_deliveries_are_listed_and_made_again(run: Run, settings: Settings) -> None:
    one, other = (run("add", URL, "--json").json["id"] for _ in range(2))
    assert "no deliveries" in run("deliveries").err
    with open_store(settings) as store:
        first = dead(store, endpoint_target(one))
        second = dead(store, endpoint_target(other))
        third = dead(store, endpoint_target(other))
    listed = run("deliveries").out
    assert "answered with HTTP status 500" in listed
    assert "caption.succeeded" in listed
    assert [entry["id"] for entry in run("deliveries", "--json").json] == [third, second, first]
    (entry,) = run("deliveries", one, "--json").json
    assert (entry["id"], entry["state"]) == (first, "dead")

    assert run("redeliver", str(second)).code == 0
    (entry,) = run("deliveries", "--state", "pending", "--json").json
    assert entry["id"] == second
    assert run("redeliver", "--dead", "--endpoint", other, "--json").json["redelivered"] == [third]
    assert run("redeliver", "--dead", "--json").json["redelivered"] == [first]
    assert run("deliveries", "--state", "dead", "--json").json == []
    unknown = run("redeliver", "999999", "--json")
    assert (unknown.code, unknown.json["left"]) == (1, [999999])


def test_other_plugins_deliveries_are_not_touched(run: Run, settings: Settings) -> None:
    with open_store(settings) as store:
        dead(store, "somewhere", plugin="other")
    assert run("deliveries", "--json").json == []
    assert run("redeliver", "--dead", "--json").json["redelivered"] == []

"""Signing and verifying, against the specification's example and two other implementations."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.errors import WebhookVerificationError
from captioner.settings import Settings
from captioner.webhooks import VerifiedWebhook, verify
from captioner.webhooks.body import MAX_BODY_BYTES
from captioner.webhooks.secrets import new_secret, secret_key
from captioner.webhooks.signing import signature, signed_headers

#: The example in the tests of the specification's own libraries.
EXAMPLE_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
EXAMPLE_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
EXAMPLE_TIMESTAMP = 1614265330
EXAMPLE_BODY = b'{"test": 2432232314}'
EXAMPLE_SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

SECRET, OLD_SECRET, FOREIGN_SECRET = new_secret(), new_secret(), new_secret()
BODY = '{"type":"caption.succeeded","data":{"text":"a dog’s life 🐕"}}'.encode()
NOW = datetime(2026, 3, 1, 12, 0, 0, 700_000, tzinfo=UTC)

NODE = Path(__file__).parents[1] / "node"
PAGE = (Path(__file__).parents[2] / "plugins/captioner_webhook/README.md").read_text("utf-8")


def signed(*secrets: str, now: datetime = NOW, body: bytes = BODY) -> dict[str, str]:
    return signed_headers(secrets or (SECRET,), "msg_1", now, body)


# --- Signing --------------------------------------------------------------------------------------


def test_the_example_of_the_specification() -> None:
    made = signature(EXAMPLE_SECRET, EXAMPLE_ID, EXAMPLE_TIMESTAMP, EXAMPLE_BODY)
    assert made == EXAMPLE_SIGNATURE
    headers = {
        "webhook-id": EXAMPLE_ID,
        "webhook-timestamp": str(EXAMPLE_TIMESTAMP),
        "webhook-signature": EXAMPLE_SIGNATURE,
    }
    sent_at = datetime.fromtimestamp(EXAMPLE_TIMESTAMP, UTC)
    assert verify(headers, EXAMPLE_BODY, EXAMPLE_SECRET, now=sent_at) == VerifiedWebhook(
        EXAMPLE_ID, sent_at
    )


def test_the_timestamp_is_utc_whatever_the_zone() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5, minutes=45)))
    assert signed(now=elsewhere) == signed(now=NOW)
    assert signed()["webhook-timestamp"] == str(int(NOW.timestamp()))


def test_secrets_are_new_and_as_the_specification_wants_them() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    for secret in made:
        assert secret.startswith("whsec_")
        assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32


@pytest.mark.parametrize("size", [0, 23, 65])
def test_a_secret_of_another_length_is_none(size: int) -> None:
    with pytest.raises(ValueError, match="24 to 64 bytes") as raised:
        secret_key("whsec_" + base64.b64encode(b"k" * size).decode())
    assert "a2tr" not in str(raised.value)


# --- Verifying ------------------------------------------------------------------------------------


def test_what_was_verified_is_told() -> None:
    verified = verify(signed(), BODY, [SECRET], now=NOW)
    assert verified == VerifiedWebhook("msg_1", NOW.replace(microsecond=0))


def test_names_in_any_case_and_headers_of_every_framework() -> None:
    headers = signed()
    titled = {name.title(): value for name, value in headers.items()}
    pairs = [(name.encode(), value.encode()) for name, value in titled.items()]
    for given_headers in (titled, pairs, dict(pairs), [("host", "x"), *headers.items()]):
        assert verify(given_headers, BODY, SECRET, now=NOW).id == "msg_1"


def test_a_body_may_be_text_or_bytes() -> None:
    for body in (BODY, BODY.decode(), bytearray(BODY)):
        verify(signed(), body, SECRET, now=NOW)  # type: ignore[arg-type]  # a bytearray, too


def test_the_prefix_of_a_secret_may_be_missing() -> None:
    verify(signed(), BODY, SECRET.removeprefix("whsec_"), now=NOW)


def test_while_one_secret_replaces_the_other_either_is_enough() -> None:
    both = signed(SECRET, OLD_SECRET)
    assert both["webhook-signature"].count("v1,") == 2
    for known in (SECRET, OLD_SECRET, [FOREIGN_SECRET, OLD_SECRET]):
        verify(both, BODY, known, now=NOW)
    with pytest.raises(WebhookVerificationError, match="no signature is right"):
        verify(both, BODY, FOREIGN_SECRET, now=NOW)


def test_signatures_of_other_kinds_are_passed_over() -> None:
    headers = signed()
    headers["webhook-signature"] = f"v1a,abc v2,x  garbage é {headers['webhook-signature']}"
    verify(headers, BODY, SECRET, now=NOW)


@pytest.mark.parametrize("seconds", [-300, 0, 300])
def test_within_the_tolerance(seconds: int) -> None:
    verify(signed(), BODY, SECRET, now=NOW.replace(microsecond=0) + timedelta(seconds=seconds))


@pytest.mark.parametrize("seconds", [-301, 301])
def test_beyond_the_tolerance(seconds: int) -> None:
    now = NOW.replace(microsecond=0) + timedelta(seconds=seconds)
    with pytest.raises(WebhookVerificationError, match="300 s"):
        verify(signed(), BODY, SECRET, now=now)
    verify(signed(), BODY, SECRET, now=now, tolerance_seconds=301)
    with pytest.raises(WebhookVerificationError):
        verify(signed(), BODY, SECRET, now=now, tolerance_seconds=float("nan"))


def test_without_a_time_it_is_now() -> None:
    verify(signed(now=datetime.now(UTC)), BODY, SECRET)
    with pytest.raises(WebhookVerificationError, match="300 s"):
        verify(signed(now=datetime.now(UTC) - timedelta(minutes=6)), BODY, SECRET)


def replaced(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda headers: headers.update({name: value})


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda headers: headers.pop(name)


@pytest.mark.parametrize(
    "change",
    [
        without("webhook-id"),
        without("webhook-timestamp"),
        without("webhook-signature"),
        replaced("webhook-id", ""),
        replaced("webhook-id", "msg_2"),
        replaced("webhook-id", "msg.1"),
        replaced("webhook-id", "msg 1"),
        replaced("webhook-id", "m" * 256),
        replaced("webhook-id", None),
        replaced("webhook-id", "\ud800"),
        replaced("Webhook-Id", "msg_1"),
        replaced("webhook-timestamp", ""),
        replaced("webhook-timestamp", "soon"),
        replaced("webhook-timestamp", "-1"),
        replaced("webhook-timestamp", "1e9"),
        replaced("webhook-timestamp", "٣"),
        replaced("webhook-timestamp", "9" * 10),
        replaced("webhook-timestamp", "9" * 5000),
        replaced("webhook-timestamp", str(int(NOW.timestamp()) + 1)),
        replaced("webhook-signature", ""),
        replaced("webhook-signature", "garbage"),
        replaced("webhook-signature", "v1,a,b"),
        replaced("webhook-signature", "v1,AAA"),
        replaced("webhook-signature", "v1,\ud800"),
        replaced("webhook-signature", 7),
        replaced(7, "x"),  # type: ignore[arg-type]  # anything may be in it
    ],
)
def test_a_header_that_is_missing_or_wrong(change: Callable[[dict[str, Any]], None]) -> None:
    headers: dict[str, Any] = signed()
    verify(headers, BODY, SECRET, now=NOW)
    change(headers)
    with pytest.raises(WebhookVerificationError):
        verify(headers, BODY, SECRET, now=NOW)


@pytest.mark.parametrize(
    "body", [b"", BODY + b" ", BODY[:-1], b"\xff\xfe", "\ud800", None, 17, [BODY]]
)
def test_a_body_that_is_another(body: Any) -> None:
    with pytest.raises(WebhookVerificationError):
        verify(signed(), body, SECRET, now=NOW)


@pytest.mark.parametrize(
    "secrets", ["", [], [""], "whsec_", "whsec_é", "whsec_!!!", None, 5, [None], [[SECRET]], b"x"]
)
def test_secrets_that_are_none(secrets: Any) -> None:
    with pytest.raises(WebhookVerificationError):
        verify(signed(), BODY, secrets, now=NOW)


@pytest.mark.parametrize("headers", [None, 5, "webhook-id", [1], [("a", "b", "c")], [("a",)]])
def test_headers_that_are_none(headers: Any) -> None:
    with pytest.raises(WebhookVerificationError):
        verify(headers, BODY, SECRET, now=NOW)


def test_an_id_with_a_dot_is_refused_although_it_is_signed() -> None:
    headers = signed_headers([SECRET], "msg.1", NOW, BODY)
    with pytest.raises(WebhookVerificationError, match="webhook-id"):
        verify(headers, BODY, SECRET, now=NOW)


def test_a_time_far_away_is_refused_whatever_the_tolerance() -> None:
    headers = signed()
    headers["webhook-timestamp"] = "9" * 12
    made = signature(SECRET, "msg_1", 10**12 - 1, BODY)
    headers["webhook-signature"] = made
    with pytest.raises(WebhookVerificationError, match="webhook-timestamp"):
        verify(headers, BODY, SECRET, now=NOW, tolerance_seconds=float("inf"))


def test_without_a_secret_it_says_so() -> None:
    with pytest.raises(WebhookVerificationError, match="no secret"):
        verify(signed(), BODY, [], now=NOW)


anything = st.one_of(st.none(), st.integers(), st.text(), st.binary(), st.lists(st.text()))
signature_like = st.lists(
    st.one_of(st.text(), st.text().map("v1,".__add__), st.binary().map(lambda x: f"v1,{x!r}"))
).map(" ".join)
header_values = st.one_of(anything, signature_like, st.integers(0).map(str))
wanted_names = st.sampled_from(["webhook-id", "Webhook-Timestamp", b"WEBHOOK-SIGNATURE"])


@given(
    headers=st.one_of(
        anything,
        st.dictionaries(st.one_of(wanted_names, st.text(), st.binary()), header_values),
        st.lists(st.tuples(st.one_of(wanted_names, anything), header_values)),
    ),
    body=anything,
    secrets=st.one_of(anything, st.just(SECRET), st.just([SECRET])),
)
def test_garbage_raises_one_exception_only(headers: Any, body: Any, secrets: Any) -> None:
    with pytest.raises(WebhookVerificationError):
        verify(headers, body, secrets)


@given(
    name=st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]),
    value=header_values,
    body=st.one_of(st.just(BODY), anything),
)
def test_one_wrong_header_raises_one_exception_only(name: str, value: Any, body: Any) -> None:
    headers: dict[str, Any] = signed()
    if headers[name] == value and body == BODY:
        return
    headers[name] = value
    with pytest.raises(WebhookVerificationError):
        verify(headers, body, SECRET, now=NOW)


@settings(deadline=None)
@given(
    part=st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "body"]),
    at=st.integers(0, 200),
    removed=st.integers(0, 3),
    added=st.text(max_size=3),
)
def test_a_changed_webhook_raises_one_exception_or_is_the_same(
    part: str, at: int, removed: int, added: str
) -> None:
    """An edit of what was right; of a signature more may stand beside it."""
    webhook = {**signed(), "body": BODY.decode()}
    text = webhook[part]
    webhook[part] = text[:at] + added + text[at + removed :]
    body = webhook.pop("body")
    try:
        verified = verify(webhook, body, SECRET, now=NOW)
    except WebhookVerificationError:
        assert webhook != signed() or body != BODY.decode()
    else:
        assert verified == VerifiedWebhook("msg_1", NOW.replace(microsecond=0))
        assert body == BODY.decode()
        assert signed()["webhook-signature"] in webhook["webhook-signature"]


@given(body=st.binary(), message_id=st.from_regex(r"[A-Za-z0-9_]{1,64}", fullmatch=True))
def test_what_was_signed_is_verified(body: bytes, message_id: str) -> None:
    headers = signed_headers([SECRET], message_id, NOW, body)
    assert verify(headers, body, [FOREIGN_SECRET, SECRET], now=NOW).id == message_id


def test_a_receiver_needs_nothing_heavy() -> None:
    code = (
        "import sys; import captioner.webhooks; captioner.webhooks.verify; "
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.replace("'", '"')))
    heavy = {"torch", "transformers", "numpy", "PIL", "sqlalchemy", "celery", "kombu", "httpx"}
    assert "captioner" in loaded
    assert not loaded & (heavy | {"httpcore", "cryptography", "pydantic", "typer"})


# --- The page for receivers -----------------------------------------------------------------------


def test_the_samples_python_receiver(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    sample: dict[str, Any] = {}
    exec(code.replace("whsec_…", SECRET), sample)
    body = b'{"type":"caption.succeeded","data":{"id":"17"}}'
    headers = signed(now=datetime.now(UTC), body=body)
    assert sample["receive"](headers, body) == 204
    assert capsys.readouterr().out == "msg_1 caption.succeeded 17\n"
    assert sample["receive"](headers, body + b" ") == 401


def test_the_page_names_what_is_sent() -> None:
    for name in signed():
        assert f"| `{name}` |" in PAGE
    assert f"{MAX_BODY_BYTES:,} bytes" in PAGE
    for name in set(re.findall(r"CAPTIONER_([A-Z_]+)", PAGE)):
        section, _, field = name.lower().partition("__")
        assert field in type(getattr(Settings(), section)).model_fields


# --- Other implementations ------------------------------------------------------------------------


@given(body=st.dictionaries(st.text(), st.text()))
def test_the_published_python_library_verifies_ours(body: dict[str, str]) -> None:
    text = json.dumps(body)
    headers = signed(SECRET, OLD_SECRET, now=datetime.now(UTC), body=text.encode())
    for secret in (SECRET, OLD_SECRET):
        assert standardwebhooks.Webhook(secret).verify(text, headers) == body


@given(body=st.text())
def test_we_verify_the_published_python_librarys(body: str) -> None:
    now = datetime.now(UTC)
    theirs = standardwebhooks.Webhook(SECRET).sign("msg_2", now, body)
    headers = {
        "webhook-id": "msg_2",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": theirs,
    }
    assert verify(headers, body, SECRET).id == "msg_2"


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published Node.js library, as `package-lock.json` pins it."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no Node.js on this machine")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "webhooks.js"):
        shutil.copy(NODE / name, folder)
    arguments = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip("npm cannot install the published Node.js library here")
    return folder


def in_node(folder: Path, asked: Mapping[str, object]) -> Any:
    done = subprocess.run(
        ["node", "webhooks.js"],
        cwd=folder,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET], ids=["new", "old"])
def test_the_published_node_library_verifies_ours(node_folder: Path, secret: str) -> None:
    headers = signed(SECRET, OLD_SECRET, now=datetime.now(UTC))
    asked = {"secret": secret, "headers": headers, "body": BODY.decode()}
    assert in_node(node_folder, asked) == {"verified": json.loads(BODY)}
    assert "error" in in_node(node_folder, {**asked, "body": BODY.decode() + " "})
    assert "error" in in_node(node_folder, {**asked, "secret": FOREIGN_SECRET})


def test_we_verify_the_published_node_librarys(node_folder: Path) -> None:
    now = datetime.now(UTC)
    asked = {"secret": SECRET, "sign": "msg_3", "time": now.isoformat(), "body": BODY.decode()}
    headers = {
        "webhook-id": "msg_3",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": in_node(node_folder, asked)["signature"],
    }
    assert verify(headers, BODY, SECRET).id == "msg_3"

"""Which URLs mean the same receiver, and that no two receivers have the same secret."""

from __future__ import annotations

import base64
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.webhooks.receivers import receiver_of, receiver_origin, receiver_secret
from captioner.webhooks.secrets import new_secret, secret_key

ROOT = new_secret()


@pytest.mark.parametrize(
    ("url", "receiver"),
    [
        ("https://cms.example", "https://cms.example/"),
        ("HTTPS://CMS.example.:443/", "https://cms.example/"),
        ("https://cms.example?job=17", "https://cms.example/"),
        ("https://cms.example/hook?job=17#part", "https://cms.example/hook"),
        ("https://cms.example:8443/hook", "https://cms.example:8443/hook"),
        ("http://cms.example:443/hook", "http://cms.example:443/hook"),
        ("https://cms.example/%7euser/h%6fok", "https://cms.example/~user/hook"),
        ("https://cms.example/a%2fb%3f", "https://cms.example/a%2Fb%3F"),
        ("https://cms.example/a/./b/../hook", "https://cms.example/a/hook"),
        ("https://cms.example//hook/", "https://cms.example//hook/"),
        ("https://cms.example/Hook", "https://cms.example/Hook"),
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("http://[0::0001]:80/", "http://[::1]/"),
        ("https://XN--bcher-kva.example/", "https://xn--bcher-kva.example/"),
    ],
)
def test_spellings_of_one_receiver(url: str, receiver: str) -> None:
    assert receiver_of(url) == receiver
    assert receiver.startswith(f"{receiver_origin(url)}/")
    assert receiver_of(receiver) == receiver


@settings(deadline=None)
@given(path=st.text(st.sampled_from("/.%2eEfF0a~?#;é ")))
def test_what_stands_for_a_receiver_stands_for_itself(path: str) -> None:
    receiver = receiver_of(f"https://cms.example/{path}")
    assert receiver_of(receiver) == receiver


def test_an_encoded_dot_is_another_receiver() -> None:
    """A server may take it for the folder above, or not."""
    paths = ["/a/%2e%2e/hook", "/a/../hook", "/a/hook"]
    assert len({receiver_of(f"https://cms.example{path}") for path in paths}) == 3


@pytest.mark.parametrize(
    "url",
    ["", "hook", "/hook", "ftp://a.example/", "file:///hook", "https://", "https:///hook",
     "https://a%2eexample/", "https://[::1/", "https://a.example:99999/", "https://a b/"],
)  # fmt: skip
def test_what_is_no_receiver(url: str) -> None:
    with pytest.raises(ValueError):
        receiver_of(url)


def test_the_secret_can_be_made_again_by_whoever_has_the_root() -> None:
    """It is told once and stays: the way it is made must not change."""
    signed = b"captioner webhook_url\0https://cms.example/hook"
    expected = base64.b64encode(hmac.digest(secret_key(ROOT), signed, "sha256")).decode()
    assert receiver_secret(ROOT, "https://cms.example/hook") == f"whsec_{expected}"
    assert len(secret_key(f"whsec_{expected}")) == 32


@settings(deadline=None)
@given(receivers=st.sets(st.text(), min_size=2))
def test_no_two_receivers_have_the_same_secret(receivers: set[str]) -> None:
    secrets = {receiver_secret(ROOT, receiver) for receiver in receivers}
    assert len(secrets | {ROOT}) == len(receivers) + 1
    assert not secrets & {receiver_secret(new_secret(), receiver) for receiver in receivers}

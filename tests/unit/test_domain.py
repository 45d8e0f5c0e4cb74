from __future__ import annotations

import pickle

import pytest

from captioner.domain import CaptionRequest, JobState
from captioner.errors import ErrorCode, InvalidRequestError, JobError, PluginError
from captioner.source import MAX_INLINE_CHARACTERS, Source
from captioner.webhook_url import webhook_display


@pytest.mark.parametrize(
    ("uri", "scheme", "display"),
    [
        ("/media/a cat.jpg", "file", "/media/a cat.jpg"),
        ("file:///media/a%20cat.jpg", "file", "/media/a cat.jpg"),
        (
            "https://user:secret@cms.example/a.jpg?X-Sig=secret#f",
            "https",
            "https://cms.example/a.jpg?…",
        ),
        ("http://[::1]:8080/a.jpg", "http", "http://[::1]:8080/a.jpg"),
        ("https://cms.example:bad/a", "https", "https:…"),
        ("data:image/png;base64,aGVsbG8=", "data", "data:image/png;base64,…"),
        ("file:///media/a%0Ab.jpg", "file", "/media/a\N{REPLACEMENT CHARACTER}b.jpg"),
        ("S3://bucket/key", "s3", "s3://bucket/key"),
        ("My-Store+eu.1://a/b?token=x", "my-store+eu.1", "my-store+eu.1://a/b?…"),
        ("my-store:a", "file", "my-store:a"),
        ("my_store://a", "file", "my_store://a"),
        ("https://a.example/\x9b\u202e\u200b.jpg", "https", "https://a.example/���.jpg"),
        ("data:\x9b\u202e,", "data", "data:��,…"),
        ("c:picture.jpg", "file", "c:picture.jpg"),
    ],
)
def test_sources_show_no_secret(uri: str, scheme: str, display: str) -> None:
    source = Source(uri)
    assert source.scheme == scheme
    assert source.display == display
    assert "secret" not in repr(source)


@pytest.mark.parametrize(
    ("uri", "display"),
    [
        ("http:/user:hunter2@cms.example/a.jpg?hunter2", "…@cms.example/a.jpg?…"),
        ("http:user:hunter2@cms.example", "…@cms.example"),
        ("http:\\\\user:hunter2@cms.example", "…@cms.example"),
        ("https:///user:hunter2@cms.example/a", "https:…"),
        ("htp://user:hunter2@cms.example/a", "htp://cms.example/a"),
        ("http//user:hunter2@cms.example/a", "…@cms.example/a"),
        ("//user:hunter2@cms.example/a", "…@cms.example/a"),
        ("user:hunter2@cms.example/a.jpg?hunter2", "…@cms.example/a.jpg?…"),
        ("a-user:hunter2@cms.example/a.jpg?hunter2", "…@cms.example/a.jpg?…"),
        ("hunter2@cms.example/a", "…@cms.example/a"),
        ("/var/cms/user:hunter2@cms.example/a", "/var/cms/…@cms.example/a"),
        ("file:/user:hunter2@cms.example/a", "/…@cms.example/a"),
        ("file://user:hunter2@cms.example/a", "/a"),
        ("https://user:hunter2@cms.example:port/a", "https:…"),
        ("https://user:hunter2@x@cms.example/a", "https://cms.example/a"),
        ("https://user:hunter2/x@cms.example/a", "https:…"),
        ("https://user:12/hunter2@cms.example/a", "https:…"),
        ("https://user:12?hunter2@cms.example/a", "https:…"),
        ("https://user:12#hunter2@cms.example/a", "https:…"),
        ("x:https://user:hunter2@cms.example/a", "…@cms.example/a"),
    ],
)
def test_mistyped_urls_show_no_credentials(uri: str, display: str) -> None:
    assert Source(uri).display == display


@pytest.mark.parametrize(
    "uri",
    [
        "/media/photo@2x.jpg",
        "/media/12:30/photo.jpg",
        "https://cms.example/@user/photo@2x.jpg",
        "s3://bucket/photo@2x.jpg",
        "asset:17",
    ],
)
def test_what_holds_no_credentials_is_shown_whole(uri: str) -> None:
    assert Source(uri).display == uri


@pytest.mark.parametrize(
    ("url", "display"),
    [
        ("https://cms.example", "https://cms.example"),
        ("https://cms.example/", "https://cms.example"),
        ("https://cms.example:8443/hooks/hunter2?hunter2", "https://cms.example:8443/…"),
        ("https://cms.example/?hunter2", "https://cms.example/…"),
        ("http://[::1]:8080/hunter2", "http://[::1]:8080/…"),
        ("https://hunter2@cms.example/", "https://cms.example"),
        ("hunter2", "…"),
    ],
)
def test_of_a_receiver_the_host_is_shown(url: str, display: str) -> None:
    assert webhook_display(url) == display


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "  ",
        "/a\nb",
        "/a\x00b",
        "https://a/" + "x" * 9_000,
        "data:," + "x" * MAX_INLINE_CHARACTERS,
        "/not/utf8/\udcff",
    ],
)
def test_refuses_sources_nobody_could_open(uri: str) -> None:
    with pytest.raises(InvalidRequestError):
        Source(uri)


def test_inline_pictures_may_be_long() -> None:
    Source("data:image/png;base64," + "A" * 300_000)


@pytest.mark.parametrize("key", ["", "x" * 256, "a\x00"])
def test_refuses_unusable_client_keys(key: str) -> None:
    with pytest.raises(InvalidRequestError, match="client_key"):
        CaptionRequest(source=Source("/a.jpg"), client_key=key)


def test_only_queued_and_processing_may_change() -> None:
    assert {state for state in JobState if not state.terminal} == {"queued", "processing"}


def test_the_codes_are_the_documented_ones() -> None:
    """They are stored, sent and relied upon: a change here breaks clients."""
    assert {code.value: code.retryable for code in ErrorCode} == {
        "source_not_allowed": False,
        "fetch_failed": True,
        "fetch_timeout": True,
        "media_too_large": False,
        "unsupported_media_type": False,
        "decode_failed": False,
        "pixel_limit": False,
        "video_no_frames": False,
        "video_too_long": False,
        "invalid_request": False,
        "prompt_too_long": False,
        "deadline_exceeded": False,
        "out_of_memory": True,
        "worker_lost": True,
        "plugin_failed": False,
        "internal": True,
    }


@pytest.mark.parametrize(
    "error",
    [
        JobError(ErrorCode.FETCH_FAILED, "gone", retryable=False),
        InvalidRequestError("no"),
        PluginError("mine", "observe", KeyError("x")),
    ],
)
def test_errors_cross_process_boundaries(error: JobError) -> None:
    restored = pickle.loads(pickle.dumps(error))
    assert (restored.code, restored.message, restored.retryable) == (
        error.code,
        error.message,
        error.retryable,
    )

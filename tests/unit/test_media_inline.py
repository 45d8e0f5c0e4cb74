"""`data:` sources."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioner.errors import ErrorCode, JobError
from captioner.media import decode_image, open_source
from captioner.settings import MediaSettings
from captioner.source import Source
from pictures import jpeg

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = MediaSettings()
DATA = jpeg((32, 24))
TEXT = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "uri",
    [
        f"data:image/jpeg;base64,{TEXT}",
        f"DATA:image/jpeg;BASE64,{TEXT}",
        f"data:;base64,{TEXT}",
        f"data:image/jpeg;name=a.jpg;base64,{TEXT}",
        f"data:image/jpeg;base64,{TEXT.rstrip('=')}",
        f"data:image/jpeg;base64,{TEXT[:40]} %0D%0A{TEXT[40:]}",
        f"data:image/jpeg;base64,{quote(TEXT, safe='')}",
        f"data:image/jpeg,{quote(DATA)}",
        f"data:text/plain,{quote(DATA)}",
    ],
    ids=lambda uri: str(uri)[:40],
)
def test_every_spelling_is_read(tmp_path: Path, uri: str) -> None:
    media = open_source(Source(uri), tmp_path, LIMITS)

    assert media.path.parent == tmp_path
    assert media.path.read_bytes() == DATA
    assert TEXT[:20] not in media.name
    assert decode_image(media, LIMITS).size == (32, 24)


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("data:image/jpeg;base64", "comma"),
        ("data:", "comma"),
        ("data:,", "no data"),
        ("data:;base64,", "no data"),
        ("data:;base64,%20", "no data"),
        ("data:;base64,A", "base64"),
        ("data:;base64,@@@@", "base64"),
        ("data:;base64,AA=A", "base64"),
        ("data:;base64,-_-_", "base64"),
        ("data:,%", "percent"),
        ("data:,%4", "percent"),
        ("data:,%zz", "percent"),
        ("data:,ä", "percent"),
    ],
)
def test_malformed_text_is_an_invalid_request(tmp_path: Path, uri: str, text: str) -> None:
    with pytest.raises(JobError, match=text) as caught:
        open_source(Source(uri), tmp_path, LIMITS)

    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert not list(tmp_path.iterdir())


def test_the_limit_is_256_kib_decoded(tmp_path: Path) -> None:
    fitting = base64.b64encode(bytes(256 * 1024)).decode()
    assert (
        open_source(Source(f"data:;base64,{fitting}"), tmp_path, LIMITS).path.stat().st_size
        == 2**18
    )

    larger = base64.b64encode(bytes(256 * 1024 + 1)).decode()
    for uri, limits in (
        (f"data:;base64,{larger}", LIMITS),
        (f"data:;base64,{TEXT}", MediaSettings(max_image_bytes=len(DATA) - 1)),
    ):
        with pytest.raises(JobError) as caught:
            open_source(Source(uri), tmp_path, limits)
        assert caught.value.code is ErrorCode.MEDIA_TOO_LARGE


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(header=st.text(max_size=20), payload=st.text(max_size=60))
def test_any_text_is_read_or_refused(tmp_path: Path, header: str, payload: str) -> None:
    refused: list[JobError] = []
    try:
        open_source(Source(f"data:{header},{payload}"), tmp_path, LIMITS)
    except JobError as error:
        refused.append(error)

    assert all(error.code is ErrorCode.INVALID_REQUEST for error in refused)
    assert all(error.message.isprintable() for error in refused)

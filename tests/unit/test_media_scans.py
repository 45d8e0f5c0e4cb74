"""Scans of a JPEG are counted before they are decoded, wherever they are and look to be."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from captioner.domain import Media
from captioner.errors import ErrorCode, JobError
from captioner.media import decode_image
from captioner.media.scans import MAX_SCANS, MAX_SEGMENTS, objection_to_scans
from captioner.settings import MediaSettings
from pictures import empty_scans, encode, jpeg, textured

if TYPE_CHECKING:
    from pathlib import Path

SCANS = f"more than {MAX_SCANS} scans"
#: As short as they can be: a marker, and a length that counts itself.
SCAN = b"\xff\xda\0\2"
COMMENT = b"\xff\xfe\0\2"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}])
def test_pictures_that_programs_write_are_decoded(tmp_path: Path, options: dict[str, int]) -> None:
    path = tmp_path / "photo"
    path.write_bytes(encode(textured((640, 480)), "JPEG", quality=90, **options))

    assert decode_image(Media(path, "/photo"), MediaSettings()).size == (640, 480)


def test_many_scans_are_refused_before_the_first_is_decoded(tmp_path: Path) -> None:
    """This one of 228 KB would take a decoder 20 seconds."""
    path = tmp_path / "photo"
    path.write_bytes(empty_scans(3_000, 7_000))
    media, limits = Media(path, "/photo"), MediaSettings()
    started = time.thread_time()

    with pytest.raises(JobError) as caught:
        decode_image(media, limits)

    assert time.thread_time() - started < 0.2
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.DECODE_FAILED, False)
    assert caught.value.message == f"/photo: JPEG of {SCANS}; save it anew, with fewer"


def test_the_limit_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "photo"
    path.write_bytes(empty_scans(MAX_SCANS))
    assert decode_image(Media(path, "/photo"), MediaSettings()).size == (16, 16)
    assert objection_to_scans(empty_scans(MAX_SCANS + 1)) == SCANS


def test_what_only_looks_like_a_scan_is_none() -> None:
    photo = jpeg()
    thumbnails = SCAN * 200
    comment = b"\xff\xfe" + (len(thumbnails) + 2).to_bytes(2, "big") + thumbnails
    for data in (
        photo[:2] + comment + photo[2:],  # in metadata
        photo + thumbnails,  # behind the end
        photo[:-2] + b"\xff\x00\xda" * 200 + photo[-2:],  # in coded data
    ):
        assert objection_to_scans(data) is None


@pytest.mark.parametrize(
    "hiding",
    [
        b"",
        b"garbage",
        b"\xff\xff\xff",  # filling
        b"\xff\x00\xff\xd0",  # coded data, and a restart
        b"\xff\x02\xff\xff",  # has no length, although one seems to follow
        b"\xff\xd8\xff\xff",
        b"\xff\x01\xff\xff",
        b"\xff\xfe\0\0",  # shorter than its own length
    ],
)
def test_scans_are_found_behind_whatever_a_decoder_skips(hiding: bytes) -> None:
    assert objection_to_scans(b"\xff\xd8" + (hiding + SCAN) * (MAX_SCANS + 1)) == SCANS
    assert objection_to_scans(b"\xff\xd8" + (hiding + SCAN) * MAX_SCANS + b"\xff\xd9") is None


def test_the_walk_itself_takes_no_time() -> None:
    started = time.thread_time()

    told = objection_to_scans(b"\xff\xd8" + COMMENT * 5_000_000)
    assert objection_to_scans(b"\xff\xd8" + b"\xff\x00" * 10_000_000) is None
    assert objection_to_scans(b"\xff" * 20_000_000) is None

    assert told == f"more than {MAX_SEGMENTS} segments"
    assert time.thread_time() - started < 4


@given(st.binary() | st.lists(st.sampled_from([b"\xff", b"\xda", b"\0", b"\xd9"])).map(b"".join))
@example(b"")
@example(b"\xff\xd8\xff")
def test_garbage_has_few_scans(data: bytes) -> None:
    assert objection_to_scans(data) is None

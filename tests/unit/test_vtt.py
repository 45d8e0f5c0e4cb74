"""WebVTT as another parser reads it."""

from __future__ import annotations

import html
import io
from itertools import pairwise

import pytest
import webvtt
from hypothesis import given
from hypothesis import strategies as st

from captioner import Caption
from captioner.timeline import clock, segments, time_range
from captioner.vtt import web_vtt


def segment(start: float | None, end: float | None, text: str, rank: int = 1) -> Caption:
    return Caption(
        text=text, continuation=text, score=0, rank=rank, start_seconds=start, end_seconds=end
    )


def parsed(text: str) -> list[tuple[float, float, str]]:
    found = webvtt.from_buffer(io.BytesIO(text.encode()))
    return [(seconds(one.start), seconds(one.end), one.text) for one in found.captions]


def seconds(timestamp: str) -> float:
    hours, minutes, rest = timestamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def raw(text: str) -> list[str]:
    """Cue payloads, whose blocks are separated by blank lines."""
    return [block.partition("\n")[2] for block in text.strip().split("\n\n") if "-->" in block]


def test_the_whole_file() -> None:
    captions = [segment(0, 7, "both", 0), segment(0, 3661.5, "a < b"), segment(3661.5, 7200, "c")]
    assert web_vtt(captions) == (
        "WEBVTT\n\n"
        'NOTE\nDescriptions made by a machine, for <track kind="descriptions">.\n\n'
        "00:00:00.000 --> 01:01:01.500\na &lt; b\n\n"
        "01:01:01.500 --> 02:00:00.000\nc\n"
    )


def test_the_summary_and_still_images_have_no_cues() -> None:
    still = [segment(None, None, "a cat", 0), segment(None, None, "a dog", 1)]
    assert parsed(web_vtt([*still, segment(0, 5, "summary", 0)])) == []
    assert segments(still) == []


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a --> b", "a --&gt; b"),
        ("<b>bold</b> & <00:00:01.000>", "&lt;b&gt;bold&lt;/b&gt; &amp; &lt;00:00:01.000&gt;"),
        ("two\nlines\n\nand NOTE", "two lines and NOTE"),
        ("&amp;", "&amp;amp;"),
        ("a\x00\x1b[2J\x9b", "a��[2J�"),
    ],
)
def test_texts_cannot_break_the_file(text: str, written: str) -> None:
    vtt = web_vtt([segment(0, 1, text), segment(1, 2, "next", 2)])
    assert raw(vtt) == [written, "next"]
    assert len(parsed(vtt)) == 2


texts = st.text(
    st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from("\n\r\t"), max_size=40
)


@given(
    cuts=st.lists(st.integers(0, 360_000_000), min_size=2, max_size=20, unique=True).map(sorted),
    said=st.lists(texts, min_size=19, max_size=19),
)
def test_every_text_is_there_in_order_and_at_its_time(cuts: list[int], said: list[str]) -> None:
    spans = [(start / 1000, end / 1000) for start, end in pairwise(cuts)]
    parts = [
        segment(*span, text, rank)
        for rank, (span, text) in enumerate(zip(spans, said, strict=False), 1)
    ]
    vtt = web_vtt(reversed(parts))
    spoken = [part for part in parts if part.text.split()]
    assert [html.unescape(text) for text in raw(vtt)] == [" ".join(p.text.split()) for p in spoken]
    for (start, end, _), part in zip(parsed(vtt), spoken, strict=True):
        assert (start, end) == pytest.approx((part.start_seconds, part.end_seconds))


@given(cuts=st.lists(st.floats(0, 360_000), min_size=2, max_size=20).map(sorted))
def test_cues_never_overlap_nor_end_before_they_begin(cuts: list[float]) -> None:
    parts = [segment(*span, "a", rank) for rank, span in enumerate(pairwise(cuts), 1)]
    cues = parsed(web_vtt(parts))
    assert all(end > start for start, end, _ in cues)
    assert all(after[0] >= before[1] for before, after in pairwise(cues))


def test_overlapping_segments_of_others_are_cut() -> None:
    vtt = web_vtt([segment(0, 5, "a"), segment(3, 8, "b", 2)])
    assert [cue[:2] for cue in parsed(vtt)] == [(0, 3), (3, 8)]


def test_times_for_people() -> None:
    assert [clock(s) for s in (0, 59.96, 61.25, 3599.96, 3661)] == [
        "0:00.0", "1:00.0", "1:01.2", "1:00:00.0", "1:01:01.0",
    ]  # fmt: skip
    assert time_range(segment(1, 2, "")) == "0:01.0–0:02.0"
    assert time_range(segment(1, None, "")) == "0:01.0"
    assert time_range(segment(None, None, "")) == ""

"""A video's segments as WebVTT: the text of a track of kind `descriptions`.

<https://www.w3.org/TR/webvtt1/>. Browsers speak or show such tracks by scripts of the page alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from captioner.domain import Caption
from captioner.timeline import segments

_HEADER = """WEBVTT

NOTE
Descriptions made by a machine, for <track kind="descriptions">.
"""
#: `>` alone would do where it ends an arrow; the others begin a tag or an escape, or steer the
#: terminal that the file is printed to.
_ESCAPES = {
    **dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), "\N{REPLACEMENT CHARACTER}"),
    **str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"}),
}


def web_vtt(captions: Iterable[Caption]) -> str:
    """The segments among a job's captions as a WebVTT file, in UTF-8 when written.

    Cues do not overlap: one ends where the next begins. Segments without a text, and those shorter
    than a millisecond, have no cue.
    """
    cues = [
        f"\n{_timestamp(start)} --> {_timestamp(end)}\n{text}\n"
        for start, end, text in _cues(segments(captions))
    ]
    return _HEADER + "".join(cues)


def _cues(parts: list[Caption]) -> Iterator[tuple[int, int, str]]:
    """Start and end in milliseconds, and the escaped text on one line."""
    spans = [(_milliseconds(one.start_seconds), _milliseconds(one.end_seconds)) for one in parts]
    for at, one in enumerate(parts):
        start, end = spans[at]
        if at + 1 < len(spans):
            end = min(end, spans[at + 1][0])
        text = " ".join(one.text.split()).translate(_ESCAPES)
        if text and end > start:
            yield start, end, text


def _milliseconds(seconds: float | None) -> int:
    return max(0, round((seconds or 0.0) * 1000))


def _timestamp(milliseconds: int) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}.{milliseconds:03}"

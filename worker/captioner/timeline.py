"""What a video's captions say when: the segments among them, and times as people read them."""

from __future__ import annotations

from collections.abc import Iterable

from captioner.domain import JOINT, Caption


def segments(captions: Iterable[Caption]) -> list[Caption]:
    """Those of parts of a video, in the order of time; none for a still image.

    The caption of rank 0 is the summary of all, and no segment; nor is one of all frames together,
    unless there is nothing else.
    """
    timed = [
        (one.start_seconds, one.end_seconds, one)
        for one in captions
        if one.start_seconds is not None and one.end_seconds is not None
    ]
    parts = [part for part in timed if part[2].rank and part[2].origin != JOINT]
    parts = parts or [part for part in timed if part[2].origin == JOINT]
    return [one for _, _, one in sorted(parts, key=lambda part: part[:2])]


def joint_caption(captions: Iterable[Caption]) -> Caption | None:
    """The one of all frames together, where it was asked for."""
    return next((one for one in captions if one.origin == JOINT), None)


def clock(seconds: float) -> str:
    """`m:ss.t`, and `h:mm:ss.t` from an hour on."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{start}:{tenths // 10:02}.{tenths % 10}"


def time_range(caption: Caption) -> str:
    """From when to when a caption holds, or since when; empty for what has no times."""
    if caption.start_seconds is None:
        return ""
    end = "" if caption.end_seconds is None else f"–{clock(caption.end_seconds)}"
    return f"{clock(caption.start_seconds)}{end}"

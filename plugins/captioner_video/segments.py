"""From the captions of frames to what is said of the video: segments, and one for all of it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import pairwise

from captioner import Caption, FrameCaptions, content_words

#: Captions are near-equal when this part of their words that matter is the same, in their order:
#: one word in ten may differ.
NEARLY_EQUAL = 0.9


def combine(
    frames: Sequence[FrameCaptions], *, begins_at_frames: bool = False
) -> Sequence[Caption]:
    """The captions of a video: first of all of it, then of its segments in the order of time.

    Args:
        frames: of one video, each with its time, in order.
        begins_at_frames: a segment begins with its first frame, as with keyframes, which are often
            cuts; else in the middle between that and the frame before.

    Returns:
        Captions with `start_seconds` and `end_seconds`; the segments' ranges touch each other and
        do not overlap.
    """
    runs = _runs(frames)
    times = [frame.time_seconds or 0.0 for frame in frames]
    starts = [0.0]
    for run in runs[1:]:
        first = run.start
        starts.append(times[first] if begins_at_frames else (times[first - 1] + times[first]) / 2)
    end = _end_seconds(frames, starts[-1])
    segments = [
        replace(medoid(frames[run.start : run.stop]), start_seconds=begin, end_seconds=stop)
        for run, (begin, stop) in zip(runs, pairwise([*starts, end]), strict=True)
    ]
    return [replace(medoid(frames), start_seconds=0.0, end_seconds=end), *segments]


def medoid(frames: Sequence[FrameCaptions]) -> Caption:
    """The caption that has most in common with those of all frames; of equal ones the best.

    Two captions have in common the cosine of their words that matter. Its sum over all frames is
    taken word by word: a long video has thousands.
    """
    best = [frame.captions[0] for frame in frames]
    words = {text: set(content_words(text)) for text in {caption.text for caption in best}}
    weights: defaultdict[str, float] = defaultdict(float)
    for text, count in Counter(caption.text for caption in best).items():
        for word in words[text]:
            weights[word] += count / math.sqrt(len(words[text]))

    def closeness(text: str) -> float:
        own = words[text]
        return sum(weights[word] for word in sorted(own)) / math.sqrt(len(own)) if own else 0.0

    return max(best, key=lambda caption: (round(closeness(caption.text), 9), caption.score))


def nearly_equal(one: str, other: str) -> bool:
    """True when two captions say the same, but for a word in ten and for those that say nothing."""
    if one == other:
        return True
    first, second = content_words(one), content_words(other)
    return SequenceMatcher(None, first, second, autojunk=False).ratio() >= NEARLY_EQUAL


def _runs(frames: Sequence[FrameCaptions]) -> list[range]:
    """Indices of neighbouring frames whose captions are near-equal to the first among them."""
    firsts = [0]
    for at, frame in enumerate(frames):
        if not nearly_equal(frames[firsts[-1]].captions[0].text, frame.captions[0].text):
            firsts.append(at)
    return [range(first, last) for first, last in pairwise([*firsts, len(frames)])]


def _end_seconds(frames: Sequence[FrameCaptions], least: float) -> float:
    """The end of the video; where that is not known, of its last frame."""
    last = frames[-1]
    return max(least, last.time_seconds or 0.0, last.media_seconds or 0.0)

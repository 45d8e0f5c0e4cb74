"""The words of a caption that say something, and those that a video's captions say most."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from captioner.domain import Caption

MAX_KEYWORDS = 8

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_STOP = """
a about above across after against along also am among an and another any are araffe arafed around
as at away back be because been before behind being below beside between both but by can close-up
down during each few for from front get gets getting had has have having he her him his i if image
in inside into is it its left more most near next no not of off on one onto or other our out outside
over photo photograph photography picture right same several she shot show showing shown shows side
so some something standing such than that the their them then there these they this those through to
together top toward towards two under up up-close us very view was we were what where which while
who with within without you
"""
_STOP_WORDS = frozenset(_STOP.split())
_CHANGING = """
above behind below down inside left no not off outside over right two under up without
"""
#: Those that are no keywords and yet change what a caption says: left of, above, two.
_TELLING = frozenset(_CHANGING.split())


def content_words(text: str) -> tuple[str, ...]:
    """The words that make a difference, in order and in lower case: "a man" is "the man"."""
    return tuple(word for word in _words(text) if word in _TELLING or word not in _STOP_WORDS)


def keywords(captions: Iterable[Caption], most: int = MAX_KEYWORDS) -> list[str]:
    """The words seen longest in the segments of a video, without stop words; longest first.

    Args:
        captions: of one job; what has no time range counts as one second.
        most: how many at most.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    for caption in captions:
        if caption.start_seconds is None or caption.end_seconds is None:
            weight = 1.0
        else:
            weight = caption.end_seconds - caption.start_seconds
        for word in dict.fromkeys(_words(caption.text)):
            if word not in _STOP_WORDS and not word.isdecimal():
                seconds[word] += weight
    return sorted(seconds, key=lambda word: -seconds[word])[:most]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())

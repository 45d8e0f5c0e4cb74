"""From a caption to an alt text."""

from __future__ import annotations

import re

#: A screen reader has said "image" already; and that there is something, its listener knows.
_LEAD_IN = re.compile(
    r"""
      there\s+(?:is|are|'s|was|were)\b
    | (?:this|that|it)\s+(?:is|shows)\b
    | (?:(?:an?|the|this)\s+)?(?:close[ -]?up\s+)?(?:picture|photo|photograph|photography|image)
      \s+(?:of|showing|that\s+shows)\b
    | (?:(?:an?|the)\s+)?close[ -]?up\s+(?:view\s+|shot\s+)?of\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
#: Words that do not exist, which BLIP begins with: "arafed man", "an araffe view of".
_ARTEFACT = re.compile(r"\b(?:(an?)\s+)?araf+(?:e|ed|es|y)\b\s*(?=(\w?))", re.IGNORECASE)
#: What cannot end a sentence, left over where it was cut.
_DANGLING = re.compile(r"(?:\s+(?:an?|and|at|by|for|from|in|of|on|or|that|the|to|with))+$", re.I)
_SPACES = re.compile(r"\s+")
_EDGES = " .,;:-–—"


def alt_text_of(caption: str, max_characters: int) -> str:
    """The alt text of a caption; that of an alt text is itself.

    Args:
        caption: what the picture shows.
        max_characters: greatest length; longer ones end after an earlier word.

    Returns:
        A sentence without its full stop, beginning in upper case; empty when nothing is said.
    """
    text = caption
    while (shorter := _shorten(text, max_characters)) != text:
        text = shorter
    return text


def _shorten(text: str, max_characters: int) -> str:
    """One round: what a removal lays bare may be another lead-in."""
    text = _SPACES.sub(" ", _ARTEFACT.sub(_article, text)).strip(_EDGES)
    if lead_in := _LEAD_IN.match(text):
        text = text[lead_in.end() :].strip(_EDGES)
    return _capitalised(_cut(text, max_characters))


def _article(artefact: re.Match[str]) -> str:
    """`an arafed man` is a man, `a araffe owl` an owl."""
    article, letter = artefact.groups()
    if not article or not letter:
        return ""
    return "an " if letter in "aeiouAEIOU" else "a "


def _cut(text: str, max_characters: int) -> str:
    if len(text) <= max_characters:
        return text
    words = text[: max_characters + 1].rpartition(" ")[0]
    if not words:  # one word, longer than all there may be
        return text[:max_characters]
    return _DANGLING.sub("", words) or words


def _capitalised(text: str) -> str:
    first = text[:1].upper()
    # Some letters have an upper case of two.
    return first + text[1:] if len(first) == 1 else text

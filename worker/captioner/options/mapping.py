"""All options of a request together, by name: as they are stored, shown and read again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, TypeVar

from captioner.errors import InvalidRequestError
from captioner.options.alt_text import AltTextOptions
from captioner.options.generation import GenerationOptions
from captioner.options.video import VideoOptions

#: What lies among the options of a request and is not for the model.
_NOT_GENERATION = frozenset({"alt_text", "video"})
#: Of requests that ask for nothing, which most are.
_PLAIN = AltTextOptions()
_USUAL_FRAMES = VideoOptions()

Options = TypeVar("Options", GenerationOptions, AltTextOptions, VideoOptions)


def options_mapping(
    options: GenerationOptions, alt_text: AltTextOptions, video: VideoOptions
) -> dict[str, Any]:
    """All options of a request by name, as they are stored and shown.

    `alt_text` and `video` are there only when something was asked for: requests that ask for
    nothing stay the same requests, under their client keys too.
    """
    others = {"alt_text": alt_text.as_mapping(), "video": video.as_mapping()}
    return options.as_mapping() | {name: asked for name, asked in others.items() if asked}


def options_from_mapping(
    values: Mapping[str, Any],
) -> tuple[GenerationOptions, AltTextOptions, VideoOptions]:
    """What `options_mapping` made, read again.

    Raises:
        InvalidRequestError: a name is unknown or a value cannot be used.
    """
    generation = {name: value for name, value in values.items() if name not in _NOT_GENERATION}
    try:
        options = _seen_before(tuple(generation.items()))
    except TypeError:  # a value that is no option's
        options = GenerationOptions.from_mapping(generation)
    alt_text = AltTextOptions.from_mapping(values["alt_text"]) if "alt_text" in values else _PLAIN
    video = VideoOptions.from_mapping(values["video"]) if "video" in values else _USUAL_FRAMES
    return options, alt_text, video


def options_as_stored(
    values: Mapping[str, Any],
) -> tuple[GenerationOptions, AltTextOptions, VideoOptions]:
    """As `options_from_mapping`, to be shown and not to be run: nothing is refused.

    Limits change, and jobs stay: another version may have taken values that this one would not. Of
    what a newer one has added, nothing is known.
    """
    try:
        return options_from_mapping(values)
    except InvalidRequestError:
        return (
            _unchecked(GenerationOptions, values),
            _unchecked(AltTextOptions, values.get("alt_text")),
            _unchecked(VideoOptions, values.get("video")),
        )


def _unchecked(kind: type[Options], values: object) -> Options:
    given = values if isinstance(values, Mapping) else {}
    options = object.__new__(kind)
    for field in dataclasses.fields(kind):
        object.__setattr__(options, field.name, given.get(field.name, field.default))
    return options


@functools.lru_cache(maxsize=256, typed=True)
def _seen_before(items: tuple[tuple[str, Any], ...]) -> GenerationOptions:
    """Most jobs of a service have the same few options, and checking them takes its time."""
    return GenerationOptions.from_mapping(dict(items))

"""What the model says, and which model it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Longest text of a caption: what is more was not meant to be one, and would take the database.
MAX_TEXT_CHARACTERS = 100_000
#: `Caption.origin` of what the model says of all frames of a video together.
JOINT = "joint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """One caption of one job."""

    #: Prompt and generated text.
    text: str
    #: The generated text alone.
    continuation: str
    #: Mean log-probability of the generated tokens, [SEP] included; 0 is certainty.
    score: float
    #: 0 is the best.
    rank: int = 0
    #: Sum of log-probabilities over length ** length_penalty; None unless beams were searched.
    beam_score: float | None = None
    #: Of a video: from when to when it holds, and the time of the frame that it is of.
    start_seconds: float | None = None
    end_seconds: float | None = None
    frame_seconds: float | None = None
    #: Empty: the picture is decorative; None: nobody made one.
    alt_text: str | None = None
    #: What made its text: `model`, or the name of the plugin that did. What was made of all frames
    #: together stays `joint` whatever plugins do to it: that it is experimental must not be lost.
    origin: str = "model"

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, which carries captions out of the engine: its own way is far slower."""
        return _caption, tuple(getattr(self, name) for name in self.__slots__)


def check_text(name: str, text: object) -> None:
    """Refuse what cannot be the text, continuation or alt text of a caption.

    Raises:
        TypeError: it is no text.
        ValueError: it is too long, or could not be stored.
    """
    if not isinstance(text, str):
        raise TypeError(f"gave a caption whose {name} is {type(text).__name__}, not a text")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise ValueError(
            f"gave a caption whose {name} has {len(text)} characters; at most {MAX_TEXT_CHARACTERS}"
        )
    if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"gave a caption whose {name} is not valid Unicode, or holds NUL")


def _caption(*values: Any) -> Caption:
    return Caption(**dict(zip(Caption.__slots__, values, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameCaptions:
    """What the model says of one frame."""

    #: Seconds from the start of the media; None for a still image.
    time_seconds: float | None
    #: Best first, at least one.
    captions: tuple[Caption, ...]
    #: How long the media lasts, when that is known.
    media_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Which model made a result, stamped on every one."""

    id: str
    #: Commit of a hub snapshot, or `sha256:` of the local weights, all shards.
    revision: str
    #: `float16`, `bfloat16`, `float32` or `float64`.
    dtype: str
    device: str
    backend: str
    #: Pictures are squashed to this many pixels in height and width.
    image_size: int

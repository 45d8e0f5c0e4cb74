"""How a caption is to be generated: the options every backend understands."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from captioner.errors import InvalidRequestError
from captioner.given import as_real, shown, shown_names
from captioner.video_options import VideoOptions

#: The most new tokens and beams a request may ask for; both bound the memory of one image.
MAX_NEW_TOKENS = 256
MAX_BEAMS = 32
#: A length to a greater power is beyond what a float holds.
MAX_LENGTH_PENALTY = 100
#: Below 0 it multiplies scores: by more than this, they reach -1e9, which is transformers' score of
#: what must not be chosen.
MAX_SCORE_FACTOR = 10_000
#: From least to most: more than anybody needs, and far from where scores become infinite.
TEMPERATURES = (1e-4, 100.0)
REPETITION_PENALTIES = (0.01, 100.0)
#: Far more than any model's positions hold; refused before it is tokenised.
MAX_PROMPT_CHARACTERS = 4_096
MAX_ALT_TEXT_CHARACTERS = 1_000
#: What lies among the options of a request and is not for the model.
_NOT_GENERATION = frozenset({"alt_text", "video"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """Options of one caption; one set per image, mixed freely within a batch.

    The defaults are 3 beams and 20 new tokens: the beam size of the BLIP paper (appendix B) and
    its greatest length, counted here without the prompt.

    Raises:
        InvalidRequestError: a value is of the wrong type or out of range, or two contradict
            each other.
    """

    #: Text the caption starts with; empty or None asks for an unconditional caption.
    prompt: str | None = None
    num_beams: int = 3
    #: Generated tokens, the prompt's not counted.
    max_new_tokens: int = 20
    #: [SEP] is not generated before this many new tokens.
    min_new_tokens: int = 0
    #: Exponent of the length by which finished beams are divided; above 0 favours longer ones.
    length_penalty: float = 1.0
    #: 1.0 is off; above it, tokens already in prompt or caption become less likely.
    repetition_penalty: float = 1.0
    #: 0 is off; otherwise no n-gram of this length occurs twice.
    no_repeat_ngram_size: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    #: Sampling keeps this many of the likeliest tokens; 0 is off.
    top_k: int = 0
    #: Sampling keeps the likeliest tokens up to this much probability; 1.0 is off.
    top_p: float = 1.0
    #: Seed of this request's own random generator; None draws one.
    seed: int | None = None
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        """Check every value and the combinations."""
        if self.prompt is not None and not isinstance(self.prompt, str):
            raise InvalidRequestError(f"prompt must be text, not {type(self.prompt).__name__}")
        if self.prompt is not None and "\x00" in self.prompt:
            raise InvalidRequestError("prompt must not contain NUL characters")
        if self.prompt is not None and len(self.prompt) > MAX_PROMPT_CHARACTERS:
            raise InvalidRequestError(
                f"prompt must have at most {MAX_PROMPT_CHARACTERS} characters"
            )
        if not isinstance(self.do_sample, bool):
            raise InvalidRequestError(
                f"do_sample must be true or false, not {shown(self.do_sample)}"
            )
        self._check_integers()
        self._check_reals()
        self._check_combinations()

    def _check_integers(self) -> None:
        limits = {
            "num_beams": (1, MAX_BEAMS),
            "max_new_tokens": (1, MAX_NEW_TOKENS),
            "min_new_tokens": (0, MAX_NEW_TOKENS),
            "no_repeat_ngram_size": (0, MAX_NEW_TOKENS),
            "top_k": (0, 2**31 - 1),
            "num_return_sequences": (1, MAX_BEAMS),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise InvalidRequestError(f"{name} must be a whole number, not {shown(value)}")
            if not low <= value <= high:
                raise InvalidRequestError(
                    f"{name} must be from {low} to {high}, not {shown(value)}"
                )
        if self.seed is not None and (
            isinstance(self.seed, bool)
            or not isinstance(self.seed, int)
            or not 0 <= self.seed < 2**63
        ):
            raise InvalidRequestError(f"seed must be from 0 to 2**63 - 1, not {shown(self.seed)}")

    def _check_reals(self) -> None:
        for name in ("length_penalty", "repetition_penalty", "temperature", "top_p"):
            value = getattr(self, name)
            real = as_real(value)
            if real is None:
                raise InvalidRequestError(f"{name} must be a finite number, not {shown(value)}")
            # transformers refuses whole numbers here; 1 means 1.0 to everybody else.
            object.__setattr__(self, name, real)
        if not -MAX_LENGTH_PENALTY <= self.length_penalty <= MAX_LENGTH_PENALTY:
            raise InvalidRequestError(
                f"length_penalty must be from -{MAX_LENGTH_PENALTY} to {MAX_LENGTH_PENALTY}, "
                f"not {self.length_penalty}"
            )
        least, most = REPETITION_PENALTIES
        if not least <= self.repetition_penalty <= most:
            raise InvalidRequestError(
                f"repetition_penalty must be from {least:g} to {most:g}, "
                f"not {self.repetition_penalty:g}"
            )
        coldest, hottest = TEMPERATURES
        if not coldest <= self.temperature <= hottest:
            raise InvalidRequestError(
                f"temperature must be from {coldest:g} to {hottest:g}, not {self.temperature:g}; "
                "for the likeliest caption leave do_sample off"
            )
        if not 0 < self.top_p <= 1:
            raise InvalidRequestError(f"top_p must be above 0 and at most 1, not {self.top_p}")

    def _check_combinations(self) -> None:
        if self.min_new_tokens > self.max_new_tokens:
            raise InvalidRequestError(
                f"min_new_tokens ({self.min_new_tokens}) must not exceed "
                f"max_new_tokens ({self.max_new_tokens})"
            )
        if self.num_beams > 1 and self.max_new_tokens**-self.length_penalty > MAX_SCORE_FACTOR:
            least = -math.log(MAX_SCORE_FACTOR) / math.log(self.max_new_tokens)
            raise InvalidRequestError(
                f"length_penalty ({self.length_penalty:g}) must be at least "
                f"{math.ceil(least * 100) / 100:g} for max_new_tokens of {self.max_new_tokens}"
            )
        if self.do_sample and self.num_beams > 1:
            raise InvalidRequestError(
                "do_sample needs num_beams=1: beams and sampling exclude each other"
            )
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise InvalidRequestError(
                f"num_return_sequences ({self.num_return_sequences}) must not exceed "
                f"num_beams ({self.num_beams}) unless do_sample is on"
            )

    @property
    def conditional(self) -> bool:
        """True when there is a prompt; white space alone is none."""
        return bool(self.prompt and self.prompt.strip())

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build options from JSON-like data.

        Raises:
            InvalidRequestError: a name is unknown or a value cannot be used.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = set(values) - known
        if unknown:
            raise InvalidRequestError(
                f"unknown option {shown_names(unknown)}; known are {', '.join(sorted(known))}"
            )
        return cls(**values)

    def as_mapping(self) -> dict[str, Any]:
        """All values by name, as stored beside the result."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AltTextOptions:
    """How the alt text beside a caption is to be; for plugins that make one, not for the model.

    Raises:
        InvalidRequestError: a value is of the wrong type or out of range.
    """

    #: Longest alt text, in characters.
    max_characters: int = 125
    #: The picture says nothing: its alt text is empty, and that is a success.
    decorative: bool = False

    def __post_init__(self) -> None:
        """Check every value."""
        if not isinstance(self.decorative, bool):
            raise InvalidRequestError(
                f"alt_text.decorative must be true or false, not {shown(self.decorative)}"
            )
        value = self.max_characters
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidRequestError(
                f"alt_text.max_characters must be a whole number, not {shown(value)}"
            )
        if not 1 <= value <= MAX_ALT_TEXT_CHARACTERS:
            raise InvalidRequestError(
                f"alt_text.max_characters must be from 1 to {MAX_ALT_TEXT_CHARACTERS}, "
                f"not {shown(value)}"
            )

    @classmethod
    def from_mapping(cls, values: object) -> Self:
        """Build options from JSON-like data.

        Raises:
            InvalidRequestError: it is no object, a name is unknown, or a value cannot be used.
        """
        if not isinstance(values, Mapping):
            raise InvalidRequestError("options.alt_text must be a JSON object")
        known = {field.name for field in dataclasses.fields(cls)}
        if not known.issuperset(values):
            raise InvalidRequestError(
                f"unknown field in options.alt_text; known are {', '.join(sorted(known))}"
            )
        return cls(**values)

    def as_mapping(self) -> dict[str, Any]:
        """What was asked for beyond the defaults, by name."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }


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


Options = TypeVar("Options", GenerationOptions, AltTextOptions, VideoOptions)


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


#: Of requests that ask for nothing, which most are.
_PLAIN = AltTextOptions()
_USUAL_FRAMES = VideoOptions()


@functools.lru_cache(maxsize=256, typed=True)
def _seen_before(items: tuple[tuple[str, Any], ...]) -> GenerationOptions:
    """Most jobs of a service have the same few options, and checking them takes its time."""
    return GenerationOptions.from_mapping(dict(items))


#: The setting of the BLIP paper (appendix B, configs/caption_coco.yaml): greatest length 20 and
#: least 5 there count the four tokens of the prompt.
PAPER = GenerationOptions(prompt="a picture of", num_beams=3, max_new_tokens=16, min_new_tokens=1)

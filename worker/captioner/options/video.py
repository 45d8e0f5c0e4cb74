"""Which frames of a video are captioned, and how their captions become those of the video."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from captioner.errors import InvalidRequestError
from captioner.options.values import as_real, beyond_defaults, fields_of, shown

Strategy = Literal["uniform", "interval", "fps", "keyframes", "timestamps"]
Mode = Literal["per_frame", "joint", "both"]

#: Frames of a request that asks for a number of them, and times it may name.
MAX_FRAMES = 512
#: From least to most. Times that lie nearer together than a thousandth of a second are the same to
#: whoever samples; a frame in a million seconds is the first one, of any video.
INTERVALS = (1e-3, math.inf)
FPS = (1e-6, 240.0)

#: Which value belongs to which strategy, and to no other.
_OWNERS = {"interval_seconds": "interval", "fps": "fps", "timestamps": "timestamps"}


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoOptions:
    """How a video is to be sampled; of no meaning for a still image.

    Raises:
        InvalidRequestError: a value is of the wrong type or out of range, or two contradict
            each other.
    """

    #: `uniform`: the centres of equal parts; `interval`: every so many seconds from 0; `fps`: so
    #: many a second; `keyframes`: what is stored as a whole picture; `timestamps`: those named.
    strategy: Strategy = "uniform"
    #: How many: of `uniform` exactly (None: 8), of others at most, spread evenly (None: no limit).
    frames: int | None = None
    interval_seconds: float | None = None
    #: Frames a second.
    fps: float | None = None
    #: Seconds from the start; kept in order, each once.
    timestamps: tuple[float, ...] = ()
    #: `per_frame`: a caption each, merged into segments; `joint`: one of all frames together
    #: (experimental); `both`: the segments, and last the joint one.
    mode: Mode = "per_frame"

    def __post_init__(self) -> None:
        """Check every value and the combinations."""
        for name, allowed in (("strategy", get_args(Strategy)), ("mode", get_args(Mode))):
            value = getattr(self, name)
            if value not in allowed:
                raise InvalidRequestError(
                    f"video.{name} must be {', '.join(allowed[:-1])} or {allowed[-1]}, "
                    f"not {shown(value)}"
                )
        self._check_frames()
        self._check_real("interval_seconds", *INTERVALS)
        self._check_real("fps", *FPS)
        self._check_timestamps()
        self._check_combinations()

    def _check_frames(self) -> None:
        value = self.frames
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidRequestError(f"video.frames must be a whole number, not {shown(value)}")
        if not 1 <= value <= MAX_FRAMES:
            raise InvalidRequestError(
                f"video.frames must be from 1 to {MAX_FRAMES}, not {shown(value)}"
            )

    def _check_real(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if value is None:
            return
        real = as_real(value)
        if real is None:
            raise InvalidRequestError(f"video.{name} must be a number, not {shown(value)}")
        if not least <= real <= most:
            to = f" and at most {most:g}" if math.isfinite(most) else ""
            raise InvalidRequestError(f"video.{name} must be at least {least:g}{to}, not {real:g}")
        object.__setattr__(self, name, real)

    def _check_timestamps(self) -> None:
        if not isinstance(self.timestamps, list | tuple):
            raise InvalidRequestError("video.timestamps must be a list of seconds")
        times = [time for time in map(as_real, self.timestamps) if time is not None]
        if len(times) < len(self.timestamps):
            raise InvalidRequestError("video.timestamps must be a list of seconds")
        if len(times) > MAX_FRAMES or any(time < 0 for time in times):
            raise InvalidRequestError(
                f"video.timestamps must be at most {MAX_FRAMES} times from 0 on"
            )
        object.__setattr__(self, "timestamps", tuple(sorted(set(times))))

    def _check_combinations(self) -> None:
        for name, strategy in _OWNERS.items():
            if self.strategy == strategy and not getattr(self, name):
                raise InvalidRequestError(f"video.strategy {strategy} needs video.{name}")
            if self.strategy != strategy and getattr(self, name):
                raise InvalidRequestError(
                    f"video.{name} belongs to video.strategy {strategy}, not {self.strategy}"
                )
        if self.strategy == "timestamps" and self.frames is not None:
            raise InvalidRequestError("video.frames and video.timestamps exclude each other")

    @classmethod
    def from_mapping(cls, values: object) -> Self:
        """Build options from JSON-like data.

        Raises:
            InvalidRequestError: it is no object, a name is unknown, or a value cannot be used.
        """
        return cls(**fields_of(cls, values, "options.video"))

    def as_mapping(self) -> dict[str, Any]:
        """What was asked for beyond the defaults, by name; JSON values only."""
        asked = beyond_defaults(self)
        if self.timestamps:
            asked["timestamps"] = list(self.timestamps)
        return asked

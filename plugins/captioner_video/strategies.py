"""At which times a video is looked at: pure functions, all times in seconds from its start."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from captioner import VideoOptions

#: Frames of `uniform` when a request names no number: what the BLIP paper samples.
DEFAULT_FRAMES = 8
#: Times that differ by less are the same.
SAME_SECONDS = 1e-3


def count_times(options: VideoOptions, duration_seconds: float) -> int:
    """How many times `plan_times` gives, known before any is made; `keyframes` are not known: 0."""
    match options.strategy:
        case "uniform":
            return options.frames or DEFAULT_FRAMES
        case "timestamps":
            return len(options.timestamps)
        case "keyframes":
            return 0
    steps = _count_steps(_step(options), duration_seconds)
    return min(steps, options.frames or steps)


def plan_times(
    options: VideoOptions, duration_seconds: float, keyframes: Sequence[float] = ()
) -> list[float]:
    """The times to look at, in order, each once, all within the video.

    Args:
        options: of the request.
        duration_seconds: of the video, at least 0; one of 0 is looked at once.
        keyframes: when its keyframes are shown, in order, for the strategy of that name.
    """
    match options.strategy:
        case "uniform":
            count = options.frames or DEFAULT_FRAMES
            times = [(number + 0.5) * duration_seconds / count for number in range(count)]
        case "timestamps":
            times = [time for time in options.timestamps if time < duration_seconds]
        case "keyframes":
            times = spread(list(keyframes), options.frames)
        case _:
            # No list of all steps is made: short ones are many more than the frames.
            step = _step(options)
            steps = range(_count_steps(step, duration_seconds))
            times = [number * step for number in spread(steps, options.frames)]
    return list(dict.fromkeys(times))


def spread(times: Sequence[float], most: int | None) -> list[float]:
    """At most so many of the times: those in the middle of equal parts."""
    if most is None or len(times) <= most:
        return list(times)
    return [times[int((number + 0.5) * len(times) / most)] for number in range(most)]


def still_to_do(times: Sequence[float], done_seconds: Collection[float]) -> list[float]:
    """Those of the times for which no frame is there yet.

    A frame is of the first time that is not before its own and has none: near a time that could not
    be reached exactly an earlier frame was taken, and the same one for several times.

    Args:
        times: as `plan_times` gave them.
        done_seconds: the times of frames that are there.
    """
    done = sorted(done_seconds)
    todo, at = [], 0
    for time in times:
        if at < len(done) and done[at] <= time + SAME_SECONDS:
            at += 1
        else:
            todo.append(time)
    return todo


def _step(options: VideoOptions) -> float:
    """Seconds between two times of `interval` and `fps`, which have one of the two."""
    return options.interval_seconds or 1 / (options.fps or 1)


def _count_steps(step_seconds: float, duration_seconds: float) -> int:
    """How many there are of 0, one step, two steps, … before the end."""
    return max(1, math.ceil(duration_seconds / step_seconds))

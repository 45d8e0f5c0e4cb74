"""Films of drawn scenes: videos of which it is known what is seen, and when."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from captioner.demo.scenes import Scene, draw, random_scene
from captioner.domain import Caption
from captioner.timeline import segments

#: Pictures a second.
RATE = 10
#: Scenes of a film that is made up.
SCENES = 3
#: How long a scene lasts, in seconds.
SHORTEST_SECONDS, LONGEST_SECONDS = 2, 5


@dataclass(frozen=True, slots=True)
class Film:
    """Scenes one after the other, cut without a transition."""

    scenes: tuple[Scene, ...]
    #: How long each of them is seen, in pictures.
    lengths: tuple[int, ...]

    @property
    def timeline(self) -> list[tuple[float, float, str]]:
        """Start and end in seconds and the right caption of each scene."""
        cuts = [cut / RATE for cut in (0, *itertools.accumulate(self.lengths))]
        spans = itertools.pairwise(cuts)
        return [(*span, scene.caption) for span, scene in zip(spans, self.scenes, strict=True)]

    @property
    def duration_seconds(self) -> float:
        """Its length."""
        return sum(self.lengths) / RATE

    def pictures(self, size_pixels: int) -> Iterator[Image.Image]:
        """All of them in order, RGB squares."""
        for scene, length in zip(self.scenes, self.lengths, strict=True):
            yield from itertools.repeat(draw(scene, size_pixels), length)

    def told_by(self, captions: Iterable[Caption], tolerance_seconds: float) -> bool:
        """True when the segments among the captions are the scenes, each at its time."""
        parts: Sequence[Caption] = segments(captions)
        return len(parts) == len(self.scenes) and all(
            part.text == text
            and abs((part.start_seconds or 0.0) - start) <= tolerance_seconds
            and abs((part.end_seconds or 0.0) - end) <= tolerance_seconds
            for part, (start, end, text) in zip(parts, self.timeline, strict=True)
        )


def random_film(seed: int) -> Film:
    """Make up a film of scenes with different captions; the same seed, the same film."""
    rng = random.Random(seed)  # noqa: S311  # pictures, not secrets
    scenes: dict[str, Scene] = {}
    while len(scenes) < SCENES:
        scene = random_scene(rng)
        scenes[scene.caption] = scene
    lengths = [rng.randint(SHORTEST_SECONDS * RATE, LONGEST_SECONDS * RATE) for _ in scenes]
    return Film(tuple(scenes.values()), tuple(lengths))


def write_film(film: Film, path: Path, size_pixels: int = 192) -> None:
    """Encode a film as H.264 in MP4, by PyAV, which the extra `video` brings.

    Args:
        film: what is seen.
        path: of the file, which is overwritten.
        size_pixels: height and width, even.
    """
    import av  # not where only pictures are drawn

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width = stream.height = size_pixels
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(film.pictures(size_pixels)):
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

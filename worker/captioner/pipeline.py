"""One source to its captions: fetch, sample frames, caption. No database, no broker.

An image is a one-frame video, so there is one path for both.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from captioner.domain import Caption, CaptionRequest, Frame, Media
from captioner.engine import Engine
from captioner.errors import ErrorCode, JobError
from captioner.media import open_source
from captioner.plugins import Plugins
from captioner.settings import MediaSettings


@dataclass(frozen=True, slots=True)
class Captioned:
    """What became of one source."""

    captions: tuple[Caption, ...]
    #: Seconds by stage: `fetch`, `decode`, `engine`.
    timings: dict[str, float]


class Pipeline:
    """Fetches and decodes in the caller's thread and waits there for the engine.

    Call it from many threads: their pictures share the engine's batches.
    """

    def __init__(self, engine: Engine, plugins: Plugins, limits: MediaSettings) -> None:
        """`engine` must be started."""
        self._engine = engine
        self._plugins = plugins
        self._limits = limits
        # Threads wait for networks by the dozen, but decode only as many as there are cores:
        # each decoded picture may take hundreds of megabytes.
        self._decoders = threading.BoundedSemaphore(os.cpu_count() or 1)

    def caption(self, request: CaptionRequest) -> Captioned:
        """Caption one source.

        Raises:
            JobError: it cannot be; the code says why.
        """
        timings: dict[str, float] = {}
        with tempfile.TemporaryDirectory(prefix="captioner-") as folder:
            with _timed(timings, "fetch"):
                media = open_source(request.source, Path(folder), self._limits)
            with _timed(timings, "decode"), self._decoders:
                frames = self._sample(media, request)
        with _timed(timings, "engine"):
            futures = [self._engine.submit(f.pixels, request.options, request.lane) for f in frames]
            captions = [future.result() for future in futures]
        return Captioned(_combine(frames, captions), timings)

    def _sample(self, media: Media, request: CaptionRequest) -> list[Frame]:
        frames: list[Frame] = self._plugins.provide(
            "sample_frames",
            collect=list,
            media=media,
            request=request,
            image_size=self._engine.info.image_size,
        )
        if not frames:
            raise JobError(ErrorCode.VIDEO_NO_FRAMES, f"no frame was found in {media.name}")
        return frames


def _combine(frames: Sequence[Frame], captions: Sequence[Sequence[Caption]]) -> tuple[Caption, ...]:
    """A still image keeps its n-best list; of several frames each keeps its best, in time order."""
    if len(frames) == 1:
        return tuple(captions[0])
    return tuple(
        replace(best[0], rank=rank, start_seconds=frame.time_seconds)
        for rank, (frame, best) in enumerate(zip(frames, captions, strict=True))
    )


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        timings[stage] = round(time.monotonic() - started, 6)

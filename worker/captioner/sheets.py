"""Contact sheets of videos that were captioned: their frames sampled once more."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path, PurePath

from captioner.contact_sheet import MAX_CELLS, Cell, contact_sheet
from captioner.domain import JOINT, Caption, CaptionRequest
from captioner.errors import CaptionerError
from captioner.plugins import Plugins
from captioner.providers import Providers
from captioner.sampling import Sampler
from captioner.settings import MediaSettings
from captioner.timeline import clock, segments
from captioner.words import keywords

#: Height and width in pixels of the frames, which are then drawn with their own proportions.
FRAME_PIXELS = 384


def sheet_of(
    request: CaptionRequest,
    captions: Sequence[Caption],
    sampler: Sampler,
    plugins: Plugins,
    limits: MediaSettings,
) -> bytes:
    """The contact sheet of a video: its frames as they were sampled, each with its segment's text.

    Args:
        request: what was asked for, its options the same.
        captions: what came of it; one of all frames together is in the title alone.
        sampler: decodes the video.
        plugins: bring the source here.
        limits: what may be read.

    Returns:
        A JPEG file.

    Raises:
        CaptionerError: it is no video, or can no longer be read here.
    """
    parts = segments(captions)
    if not parts:
        raise CaptionerError(f"{request.source.display} has no segments: it was no video")
    with tempfile.TemporaryDirectory(prefix="captioner-") as folder:
        media = Providers(plugins, limits).open_source(request.source, Path(folder))
        cells: list[Cell] = []
        with closing(sampler.sample(media, request, FRAME_PIXELS)) as frames:
            for number, frame in enumerate(frames):
                every = math.ceil((frame.expected_frames or 0) / MAX_CELLS) or 1
                if number % every or len(cells) == MAX_CELLS:
                    continue
                seconds = frame.time_seconds or 0.0
                text = _text_at(parts, seconds)
                cells.append(Cell(frame.pixels, seconds, text, frame.aspect_ratio or 1.0))
    said = ", ".join(keywords(parts))
    title = f"{PurePath(media.name).name}, {clock(parts[-1].end_seconds or 0.0)}"
    return contact_sheet(cells, title, f"{captions[0].text}  ·  {said}")


def _text_at(parts: Sequence[Caption], seconds: float) -> str:
    """What the segment says that a time is in; nothing where it is not of that frame."""
    if parts[0].origin == JOINT:
        return ""
    begun = [one for one in parts if (one.start_seconds or 0.0) <= seconds]
    return begun[-1].text if begun else parts[0].text

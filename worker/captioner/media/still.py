"""The built-in frame provider: a still image is a video of one frame."""

from __future__ import annotations

import pluggy

from captioner.domain import Frame, Media
from captioner.media.frames import still_frame
from captioner.settings import MediaSettings

hookimpl = pluggy.HookimplMarker("captioner")


class StillImages:
    """Provides `sample_frames` for whatever no plugin has taken."""

    def __init__(self, limits: MediaSettings) -> None:
        """`limits` bound what is decoded."""
        self._limits = limits

    @hookimpl(trylast=True)
    def sample_frames(self, media: Media, image_size: int) -> list[Frame]:
        """Decode the image (the first picture of an animation) into one frame."""
        return [still_frame(media, image_size, self._limits)]

"""What every sampler offers, wherever it decodes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from captioner.domain import CaptionRequest, Frame, Media


class Sampler(Protocol):
    """Decodes media into frames, one at a time, as they are asked for."""

    def sample(
        self,
        media: Media,
        request: CaptionRequest,
        image_size: int,
        *,
        done_seconds: Sequence[float] = (),
        look: Callable[[], None] | None = None,
    ) -> Generator[Frame, None, None]:
        """The frames, at least one unless some are done; closing the generator ends the decoding.

        Interactive requests are decoded before bulk ones that wait.

        Args:
            media: the file, which must stay until the generator has ended.
            request: what the client asked for.
            image_size: height and width in pixels of every frame.
            done_seconds: times of frames that are not wanted again; plugins may give them still.
            look: called now and then while a video is waited for; what it raises ends the wait.

        Raises:
            PluginError: a plugin failed, or gave what is no frame of this size.
            CrashError: the process that decoded this media died.
            JobError: the media cannot be decoded; the code says why.
        """
        ...

    def close(self) -> None:
        """Free what it holds, once nothing is sampled any more; twice does nothing."""
        ...

"""Decoding in this process: the work itself, which a decoder process does behind its pipe."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial

from captioner.cores import available_cores
from captioner.domain import CaptionRequest, Frame, Lane, Media
from captioner.errors import ErrorCode, JobError
from captioner.media import StillImages
from captioner.media.slots import SHARES, Slots
from captioner.plugins import Plugins, load_plugins
from captioner.sampling.checks import check_frame
from captioner.settings import MediaSettings, PluginSettings


def open_plugins(settings: PluginSettings, limits: MediaSettings) -> Plugins:
    """The installed plugins and the built-in still image, which is asked last."""
    plugins = load_plugins(settings)
    plugins.register(StillImages(limits), "still_image")
    return plugins


class InlineSampler:
    """Asks the plugins in the caller's thread; see `Sampler` for the contract."""

    def __init__(self, plugins: Plugins, limits: MediaSettings) -> None:
        """`plugins` include the still image; `limits` are what they are told to keep."""
        self._plugins = plugins
        self._limits = limits
        # Threads wait for networks by the dozen, but decode only as many as there are cores:
        # each decoded picture may take hundreds of megabytes. A video keeps its slot for long.
        self._slots = Slots(max(2, available_cores()), {Lane.VIDEO: SHARES[Lane.VIDEO]})

    def sample(
        self,
        media: Media,
        request: CaptionRequest,
        image_size: int,
        *,
        done_seconds: Sequence[float] = (),
        look: Callable[[], None] | None = None,
    ) -> Generator[Frame, None, None]:
        """The frames of the first plugin that knows this media; see `Sampler.sample`."""
        self._slots.acquire(request.lane, look=look)
        try:
            done, most = set(done_seconds), self._limits.max_video_frames
            count = len(done)
            for frame in self._plugins.stream(
                "sample_frames",
                check=partial(check_frame, image_size=image_size),
                media=media,
                request=request,
                image_size=image_size,
                limits=self._limits,
                done_seconds=done_seconds,
            ):
                count += frame.time_seconds not in done
                if count > most:  # also of a plugin that knows no limits, or no end
                    raise JobError(
                        ErrorCode.VIDEO_TOO_LONG,
                        f"{media.name}: more than {most} frames were sampled "
                        "(CAPTIONER_MEDIA__MAX_VIDEO_FRAMES)",
                    )
                yield frame
            if not count:
                raise JobError(ErrorCode.VIDEO_NO_FRAMES, f"no frame was found in {media.name}")
        except MemoryError as error:
            # Not tried again: the same media takes the same memory.
            raise JobError(
                ErrorCode.OUT_OF_MEMORY,
                f"{media.name}: decoding it takes too much memory "
                "(CAPTIONER_MEDIA__DECODER_MEMORY_BYTES limits each decoder)",
                retryable=False,
            ) from error
        finally:
            self._slots.release(request.lane)

    def close(self) -> None:
        """Nothing is held."""

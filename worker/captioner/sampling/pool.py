"""Decoders for many threads: about one a core, started when they are needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence

from captioner.cores import available_cores
from captioner.domain import CaptionRequest, Frame, Lane, Media
from captioner.media.slots import SHARES, Slots
from captioner.plugins import Plugins
from captioner.sampling.api import Sampler
from captioner.sampling.decoder import Decoder
from captioner.sampling.inline import InlineSampler
from captioner.settings import LogSettings, MediaSettings, PluginSettings, Settings


class ChildSampler:
    """Samples in processes of their own; see `Sampler` for the contract.

    A decoder that dies, hangs or takes too much fails the one job it works on; the next job gets a
    fresh one.
    """

    def __init__(self, plugins: PluginSettings, limits: MediaSettings, log: LogSettings) -> None:
        """The decoders load the plugins themselves.

        Args:
            plugins: which of the installed plugins they load.
            limits: of what they read, and of themselves.
            log: how they log, to this process's standard error.
        """
        self._settings = (plugins, limits, log)
        count = decoder_count(limits)
        # A video keeps its decoder for long; bulk pictures need no share, as theirs come free.
        self._slots = Slots(count, {Lane.VIDEO: SHARES[Lane.VIDEO]})
        self._lock = threading.Lock()
        #: The one used last is used first, so that few processes run where few suffice.
        self._idle: list[Decoder] = []
        self._closed = False

    def sample(
        self,
        media: Media,
        request: CaptionRequest,
        image_size: int,
        *,
        done_seconds: Sequence[float] = (),
        look: Callable[[], None] | None = None,
    ) -> Generator[Frame, None, None]:
        """The frames, from a decoder that this job has for itself; see `Sampler.sample`."""
        self._slots.acquire(request.lane, look=look)
        try:
            decoder = self._take()
            try:
                yield from decoder.sample(
                    media, request, image_size, done_seconds=done_seconds, look=look
                )
            finally:
                self._put_back(decoder)
        finally:
            self._slots.release(request.lane)

    def close(self) -> None:
        """End the decoders; one that still works ends with its job."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for decoder in idle:
            decoder.close()

    def _take(self) -> Decoder:
        with self._lock:
            while self._idle:
                decoder = self._idle.pop()
                if decoder.usable:
                    return decoder
                decoder.close()
        return Decoder(*self._settings)

    def _put_back(self, decoder: Decoder) -> None:
        with self._lock:
            if decoder.usable and not self._closed:
                self._idle.append(decoder)
                return
        decoder.close()


def decoder_count(limits: MediaSettings) -> int:
    """How many processes decode; 0: none, it is done in the worker's threads."""
    return max(2, available_cores()) if limits.decoders is None else limits.decoders


def open_sampler(settings: Settings, plugins: Plugins) -> Sampler:
    """The sampler these settings ask for.

    Args:
        settings: of this process.
        plugins: of this process, for decoding in its threads.
    """
    if settings.media.decoders == 0:
        return InlineSampler(plugins, settings.media)
    return ChildSampler(settings.plugins, settings.media, settings.log)

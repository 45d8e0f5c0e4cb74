"""One decoder, as the worker sees it: it gets a job, gives frames, and may die of it."""

from __future__ import annotations

import signal
import socket
import struct
import time
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from captioner.children import Child, socket_of
from captioner.domain import CaptionRequest, Frame, Lane, Media
from captioner.errors import CrashError, ErrorCode, JobError, UnfitError
from captioner.media.slots import LOOK_SECONDS
from captioner.sampling.process import run_decoder
from captioner.sampling.wire import Ready, max_bytes, unpack
from captioner.settings import LogSettings, MediaSettings, PluginSettings

Result = TypeVar("Result")

#: Longest time in seconds that a decoder may take to load its plugins.
START_SECONDS = 60.0
#: How long in seconds a process that has closed its pipe may take to end.
END_SECONDS = 2.0
#: A decoder whose answer is late, and that computed for less than this share of the time, has hung,
#: as on a network drive that is away: that says nothing of the file, which is worth another try.
BUSY_SHARE = 0.25


class Decoder:
    """A process that works on one job at a time. Not safe for threads."""

    def __init__(self, plugins: PluginSettings, limits: MediaSettings, log: LogSettings) -> None:
        """Start the process and wait until it is ready.

        Raises:
            UnfitError: it does not start, which says nothing of any job.
        """
        self._timeout_seconds = limits.decode_timeout_seconds
        try:
            self._child = Child("decoder", run_decoder, plugins, limits, log)
        except OSError as error:  # no memory, or as many processes or open files as it may have
            raise UnfitError(f"no decoder can be started: {error.strerror or error}") from error
        #: False while it works, and for ever once it has retired.
        self._free = False
        #: What it had computed when the wait for its next answer began.
        self._cpu_seconds = 0.0
        try:
            self._set_timeout(START_SECONDS)
            self._free = isinstance(self._receive(0), Ready)
            self._set_timeout(self._timeout_seconds)
        except (EOFError, OSError, ValueError) as error:
            raise UnfitError(f"a decoder does not start: it {self._ending(error)}") from error
        finally:
            if not self._free:
                self.close()

    @property
    def usable(self) -> bool:
        """True when it can take a job; a process that waits for one may be killed, too."""
        # It has nothing to say then: what can be read is the end of the pipe.
        return self._free and not self._child.connection.poll(0)

    def sample(
        self,
        media: Media,
        request: CaptionRequest,
        image_size: int,
        *,
        done_seconds: Sequence[float] = (),
        look: Callable[[], None] | None = None,
    ) -> Generator[Frame, None, None]:
        """The frames of one job; see `Sampler.sample`.

        Afterwards, and when it is closed early, `usable` says whether it can take another job.
        """
        self._free = False
        self._cpu_seconds = self._child.cpu_seconds
        # A picture takes a moment, and to look whether its answer is there takes some of it.
        patient = request.lane is not Lane.VIDEO
        work = (media, request, image_size, done_seconds)
        self._blamed(media, lambda: self._child.connection.send(work))
        while True:
            if look and not patient:
                self._wait(media, look)
            message = self._blamed(media, lambda: self._receive(image_size))
            if isinstance(message, Ready):
                break
            yield message
            self._cpu_seconds = self._child.cpu_seconds
            patient = patient and message.time_seconds is None
        if message.error:
            raise message.error

    def close(self) -> None:
        """End the process: what it works on is not wanted."""
        self._free = False
        self._child.kill()

    def _wait(self, media: Media, look: Callable[[], None]) -> None:
        """Until there is an answer, with a look around now and then; what that raises ends it."""
        give_up = time.monotonic() + self._timeout_seconds
        while not self._child.connection.poll(LOOK_SECONDS):
            look()
            if time.monotonic() > give_up:
                raise self._failure(media, BlockingIOError())

    def _blamed(self, media: Media, work: Callable[[], Result]) -> Result:
        """Do what the pipe is needed for; that it breaks is the decoder's fault."""
        try:
            return work()
        except (EOFError, OSError, ValueError) as error:
            raise self._failure(media, error) from error

    def _receive(self, image_size: int) -> Frame | Ready:
        message = unpack(self._child.connection.recv_bytes(max_bytes(image_size)), image_size)
        if isinstance(message, Ready):
            self._free = not message.retires
        return message

    def _failure(self, media: Media, error: Exception) -> JobError:
        limit = f"{self._timeout_seconds:g} s (CAPTIONER_MEDIA__DECODE_TIMEOUT_SECONDS)"
        if isinstance(error, BlockingIOError):
            ending = f"hung for {limit}"
            computed = self._child.cpu_seconds - self._cpu_seconds
            too_slow = computed >= self._timeout_seconds * BUSY_SHARE
        else:
            ending = self._ending(error)
            too_slow = self._child.exit_code == -signal.SIGXCPU
        if too_slow:
            return JobError(
                ErrorCode.DECODE_FAILED, f"{media.name}: decoding it took longer than {limit}"
            )
        return CrashError(ErrorCode.WORKER_LOST, f"{media.name}: its decoder {ending}")

    def _ending(self, error: Exception) -> str:
        """How the process ended, or why it is to be ended, in words that follow `it`."""
        if isinstance(error, ValueError):
            return f"gave an answer that makes no sense: {error}"
        if isinstance(error, BlockingIOError):
            return "gave no answer in time"
        code = self._child.end(END_SECONDS)
        if code >= 0:
            return f"ended with exit code {code}"
        return f"was killed by {signal.Signals(-code).name}"

    def _set_timeout(self, seconds: float) -> None:
        """Let the kernel end every wait for the pipe, also one within a message."""
        whole = int(seconds)
        timeval = struct.pack("ll", whole, max(1, int((seconds - whole) * 1e6)))
        with socket_of(self._child.connection) as pipe:
            pipe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

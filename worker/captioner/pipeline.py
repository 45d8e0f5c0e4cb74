"""One source to its captions: fetch, sample frames, caption. No database, no broker.

An image is a one-frame video, so there is one path for both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from datetime import UTC, datetime
from pathlib import Path

from captioner.captioning import Captioned, Captioning
from captioner.disk_room import filling, job_folder
from captioner.domain import CaptionRequest
from captioner.engine import Engine
from captioner.errors import HandedBackError, JobError
from captioner.frame_log import FrameLog
from captioner.media import HostSlots
from captioner.plugins import Plugins
from captioner.providers import Found, Providers
from captioner.sampling import Sampler
from captioner.settings import MediaSettings
from captioner.watch import Watch

#: The folder of what is not brought anywhere.
_NOWHERE = nullcontext(Path(os.devnull))


def _host_time() -> datetime:
    return datetime.now(UTC)


class Pipeline:
    """Fetches in the caller's thread, and waits there for decoders and the engine.

    Call it from many threads: their pictures share the engine's batches.
    """

    def __init__(
        self,
        engine: Engine,
        sampler: Sampler,
        limits: MediaSettings,
        *,
        plugins: Plugins | None = None,
        concurrency: int = 64,
        now: Callable[[], datetime] = _host_time,
    ) -> None:
        """Bring the parts together; who made them closes them.

        Args:
            engine: must be started.
            sampler: decodes the media.
            limits: what may be fetched.
            plugins: asked for sources and captions; their failures are counted there.
            concurrency: how many jobs are in hand at once, at most so many of them downloading;
                bulk jobs and videos leave some of that to interactive ones.
            now: the clock that deadlines go by; this machine's where not said.
        """
        self.now = now
        self._engine = engine
        self._sampler = sampler
        self._providers = Providers(plugins or Plugins(), limits)
        self._hosts = HostSlots(limits.connections_per_host, concurrency)

    @property
    def finishes_slowly(self) -> bool:
        """True when plugins work on captions, which may take them any time."""
        return self._providers.process_captions

    @property
    def hanging(self) -> int:
        """Threads in which plugins hang; nothing ends them but the end of the process."""
        return self._providers.hanging

    def close(self) -> None:
        """Let its threads end; nothing is captioned any more."""
        self._providers.close()

    def hung(self, thread: int, seconds: float) -> JobError:
        """What to raise where a plugin has hung for so long in that thread; it is counted."""
        error = self._providers.hung(thread, seconds)
        self._providers.count(error)
        return error

    def find(self, requests: Sequence[CaptionRequest]) -> list[Found | None]:
        """Find the local files of many requests, for `begin`; see `Providers.find`."""
        return self._providers.find([one.source for one in requests])

    def caption(
        self,
        request: CaptionRequest,
        *,
        canceled: Callable[[], bool] | None = None,
    ) -> Captioned:
        """Caption one source.

        Args:
            request: what the client asked for; past its deadline nothing is waited for.
            canceled: asked now and then; true when nobody wants the result any more.

        Raises:
            JobError: it cannot be; the code says why.
            CrashError: the process that worked on it died.
            NotNowError: its host has enough to do, or this worker is not fit for it; the job
                belongs back in the queue.
            EngineClosedError: the engine is closed; the job belongs back in the queue.
            CanceledError: `canceled` said so.
        """
        return self.begin(request, canceled=canceled).result()

    def begin(
        self,
        request: CaptionRequest,
        *,
        canceled: Callable[[], bool] | None = None,
        stopping: Callable[[], bool] = lambda: False,
        log: FrameLog | None = None,
        found: Found | None = None,
    ) -> Captioning:
        """Fetch and decode one source and give its frames to the engine; see `caption`.

        Returns when the engine has the last frame: what has many waits for room meanwhile. Frames
        that have captions by `log` are not captioned again, and it is told of the others. What is
        `found` is not fetched.

        Raises:
            HandedBackError: `stopping` said that this worker ends, and the log has all of a video
                that has captions; the others are for who goes on with it.
        """
        watch = Watch(canceled, request.deadline_at, self.now)
        captioning = Captioning(self._engine, self._providers, request, watch, stopping, log)
        try:
            captioning.resume()
            try:
                self._add_frames(request, watch, captioning, found)
                captioning.complete()
            except HandedBackError:
                captioning.put_down()
                raise
        except BaseException as error:
            self._providers.count(error)
            captioning.abandon()
            raise
        return captioning

    def _add_frames(
        self, request: CaptionRequest, watch: Watch, captioning: Captioning, found: Found | None
    ) -> None:
        """Fetch and decode; what was fetched is gone when the last frame was taken."""
        with _folder(needed=self._providers.needs_folder(request.source)) as folder:
            watch.check()
            if found:
                media = found.media
                watch.seconds["fetch"] += found.seconds
            else:
                since = time.monotonic()
                with (
                    self._hosts.hold(request.source, request.lane),
                    filling(folder, request.source.display),
                ):
                    media = self._providers.open_source(request.source, folder, watch.check)
                watch.count("fetch", since)
            size = self._engine.info.image_size
            stream = self._sampler.sample(
                media,
                request,
                size,
                done_seconds=captioning.done_seconds,
                look=captioning.look,
            )
            with closing(stream) as frames:
                while True:
                    captioning.look()
                    since = time.monotonic()
                    frame = next(frames, None)
                    watch.count("decode", since)
                    if frame is None:
                        return
                    captioning.add(frame)


def _folder(*, needed: bool) -> AbstractContextManager[Path]:
    """Where a source is brought to, gone afterwards; a local file is read where it lies.

    Making and removing one took a quarter of a worker's time where captions took none.
    """
    return job_folder() if needed else _NOWHERE

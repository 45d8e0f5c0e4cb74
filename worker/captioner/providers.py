"""The provider hooks of a job, asked by their types, with what they give checked.

A plugin's mistake is found where it is made, and fails the job with the plugin's name.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from captioner.bounded_calls import BoundedCalls, HangingError
from captioner.domain import JOINT, Caption, CaptionRequest, FrameCaptions, Media
from captioner.domain.captions import check_text
from captioner.errors import ErrorCode, JobError, PluginError
from captioner.media import LocalFolders, check_size, open_source
from captioner.plugins import Plugins
from captioner.settings import MediaSettings
from captioner.source import Source
from captioner.video_containers import PREFIX_BYTES

#: How long a plugin may take to bring a source, unless a download may take longer.
OPEN_SECONDS = 60.0

_TIMES = ("start_seconds", "end_seconds", "frame_seconds")


class Found(NamedTuple):
    """A local file that was found ahead."""

    media: Media
    #: How long that took.
    seconds: float


class Providers:
    """Asks plugins first, and does what captioner does by itself where none of them wants to.

    Every method raises `PluginError` for a plugin that raises or gives something wrong, and
    `JobError` as a plugin raised it on purpose.
    """

    def __init__(self, plugins: Plugins, limits: MediaSettings) -> None:
        """`limits` hold for what plugins bring, too."""
        self._plugins = plugins
        self._limits = limits
        #: Where plugins bring sources, and may hang.
        self._calls = BoundedCalls("sources")

    @property
    def hanging(self) -> int:
        """Threads in which plugins hang that were to bring a source."""
        return self._calls.hanging

    def close(self) -> None:
        """Let the threads end that have nothing to do."""
        self._calls.close()

    def hung(self, thread: int, seconds: float) -> JobError:
        """What to raise where a plugin has hung for so long in that thread."""
        problem = f"did not return within {seconds:g} s"
        if asked := self._plugins.asked_by(thread):
            return PluginError(*asked, problem)
        return JobError(ErrorCode.PLUGIN_FAILED, f"a plugin {problem}")  # between two of them

    def count(self, error: BaseException) -> None:
        """Count a plugin's failure that ends the job here, also one from a decoder's process."""
        if isinstance(error, PluginError):
            self._plugins.errors.report(error.plugin, error.hook, error.__cause__ or error.reason)

    @property
    def process_captions(self) -> bool:
        """True when plugins combine or process captions."""
        return any(map(self._plugins.implement, ("combine_captions", "process_caption")))

    def needs_folder(self, source: Source) -> bool:
        """True unless the source is a local file that no plugin could bring from elsewhere."""
        return source.scheme != "file" or self._plugins.implement("open_source")

    def open_source(
        self, source: Source, folder: Path, look: Callable[[], None] = lambda: None
    ) -> Media:
        """Bring a source to this machine; see `media.open_source`.

        `look` is called now and then while a plugin is at it; what it raises ends the wait.
        """
        media = None
        if self._plugins.implement("open_source"):
            seconds = max(OPEN_SECONDS, self._limits.fetch_timeout_seconds)
            try:
                media = self._calls.call(lambda: self._brought(source, folder), look, seconds)
            except HangingError as error:
                raise self.hung(error.thread, seconds) from None
        return media or open_source(source, folder, self._limits)

    def _brought(self, source: Source, folder: Path) -> Media | None:
        found: tuple[str, Media] | None = self._plugins.first_named(
            "open_source", check=_check_media, source=source, folder=folder
        )
        if found is None:
            return None
        name, media = found
        try:
            with media.path.open("rb") as file:
                head, size_bytes = file.read(PREFIX_BYTES), os.fstat(file.fileno()).st_size
        except OSError as error:
            raise PluginError(name, "open_source", error) from error
        check_size(source.display, size_bytes, head, self._limits)
        return media

    def find(self, sources: Sequence[Source]) -> list[Found | None]:
        """Find local files one after the other, before any of them is worked on.

        That is faster than to find one, work on it, and find the next: of a folder with many it
        asks for each file only, and each time lets other threads go on, whose code drives this
        one's out of the processor's caches (measured, 2026-11: a sixth of a job's time).

        Returns:
            None for what `open_source` has to bring, or to say why that cannot be.
        """
        with LocalFolders(self._limits) as folders:
            return [None if self.needs_folder(one) else _find(folders, one) for one in sources]

    def finish(
        self,
        frames: Sequence[FrameCaptions],
        request: CaptionRequest,
        joint: Caption | None = None,
    ) -> tuple[Caption, ...]:
        """Captions of frames made into the job's captions: combined, then each one processed.

        Args:
            frames: none where only a joint caption was asked for.
            request: what was asked for.
            joint: of all frames together; it comes last.
        """
        # Nothing that one plugin could change before the next one is asked.
        dated = tuple(_dated(frame) for frame in frames)
        captions = list(self._combine(dated, request)) if dated else []
        if joint:
            captions.append(replace(joint, rank=len(captions)))
        return tuple(self._process(caption, request) for caption in captions)

    def _combine(
        self, frames: Sequence[FrameCaptions], request: CaptionRequest
    ) -> Sequence[Caption]:
        found: tuple[str, Sequence[Caption]] | None = self._plugins.first_named(
            "combine_captions", check=_check_captions, frames=frames, request=request
        )
        if found is None:
            return _combine(frames)
        name, captions = found
        said = {caption.text for frame in frames for caption in frame.captions}
        return [
            replace(caption, rank=rank, origin=caption.origin if caption.text in said else name)
            for rank, caption in enumerate(captions)
        ]

    def _process(self, caption: Caption, request: CaptionRequest) -> Caption:
        processed: Caption = self._plugins.chain(
            "process_caption", "caption", caption, accept=_accept, request=request
        )
        return processed


def _find(folders: LocalFolders, source: Source) -> Found | None:
    started = time.monotonic()
    try:
        return Found(folders.open(source), time.monotonic() - started)
    except JobError:  # not kept: it knows this frame, and would be left to the cycle collector
        return None


def _dated(frame: FrameCaptions) -> FrameCaptions:
    """Captions of a moment say of which, whatever is made of them."""
    if frame.time_seconds is None:
        return frame
    captions = (replace(caption, frame_seconds=frame.time_seconds) for caption in frame.captions)
    return replace(frame, captions=tuple(captions))


def _combine(frames: Sequence[FrameCaptions]) -> Sequence[Caption]:
    """A still image keeps its n-best list; of several frames each keeps its best, in time order."""
    if len(frames) == 1:
        return frames[0].captions
    return [
        replace(frame.captions[0], rank=rank, start_seconds=frame.time_seconds)
        for rank, frame in enumerate(frames)
    ]


def _accept(name: str, before: Caption, after: Caption) -> Caption:
    """A processed caption: its rank is the row's key, its origin is who wrote the text."""
    _check_caption(after)
    origin = before.origin if after.text == before.text or before.origin == JOINT else name
    return replace(after, rank=before.rank, origin=origin)


def _check_media(media: object) -> None:
    if not isinstance(media, Media):
        raise TypeError(f"gave {type(media).__name__} instead of Media")
    if not isinstance(media.path, Path) or not isinstance(media.name, str):
        raise TypeError("gave Media without a Path and a name")
    if not media.path.is_file():
        raise ValueError(f"gave {media.path.name!r}, which is no file")


def _check_captions(captions: object) -> None:
    if not isinstance(captions, Sequence) or isinstance(captions, str):
        raise TypeError(f"gave {type(captions).__name__} instead of a list of Captions")
    if not captions:
        raise ValueError("gave no caption")
    for caption in captions:
        _check_caption(caption)


def _check_caption(caption: object) -> None:
    """Refuse what could not be stored, before it costs the whole job."""
    if not isinstance(caption, Caption):
        raise TypeError(f"gave {type(caption).__name__} instead of a Caption")
    for name in ("text", "continuation"):
        check_text(name, getattr(caption, name))
    if caption.alt_text is not None:
        check_text("alt_text", caption.alt_text)
    _check_number("score", caption.score)
    for name in ("beam_score", *_TIMES):
        if getattr(caption, name) is not None:
            _check_number(name, getattr(caption, name))


def _check_number(name: str, number: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError(f"gave a caption whose {name} is not a finite number: {number!r}")

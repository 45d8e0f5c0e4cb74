"""The hooks a plugin may implement: this file is the contract.

Three kinds, three policies. *Providers* take part in a job: the first result that is not None wins
(`process_caption` is a chain instead), and an error fails the job as `plugin_failed`, naming the
plugin. The hooks of *events* are called by workers of the queue `events`: they can fail no job, and
what fails or hangs is tried again. *Observers* are told: their result is ignored, an error is
logged with the plugin's name and harms nothing, and each plugin is told in a thread of its own.

A plugin names only the arguments it wants.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from captioner.domain import Caption, CaptionRequest, Frame, FrameCaptions, Job, Media
    from captioner.events import Event, Receipt
    from captioner.model import CaptionModel
    from captioner.settings import MediaSettings, Settings
    from captioner.source import Source
    from captioner.stats import WorkerStats
    from captioner.store import Store

hookspec = pluggy.HookspecMarker("captioner")

# ---- Providers -------------------------------------------------------------------------------


@hookspec(firstresult=True)
def open_source(source: Source, folder: Path) -> Media | None:
    """Bring a source to this machine, as from s3://…; None leaves it to the next plugin.

    Asked before what captioner opens by itself, so have a look at `source.scheme` first. Called in
    a thread of the worker, which is left behind after 60 s, or
    `CAPTIONER_MEDIA__FETCH_TIMEOUT_SECONDS` where that is more.

    Args:
        source: what the client named; `source.uri` in full, `source.display` to be shown.
        folder: of this job alone, removed with all that is in it when the frames were taken.

    Returns:
        A regular file, of at most `CAPTIONER_MEDIA__MAX_IMAGE_BYTES`; a video may have
        `CAPTIONER_MEDIA__MAX_VIDEO_BYTES`.
    """


@hookspec(firstresult=True)
def sample_frames(
    media: Media,
    request: CaptionRequest,
    image_size: int,
    limits: MediaSettings,
    done_seconds: Collection[float],
) -> Iterable[Frame] | None:
    """Turn media into frames; None leaves it to the next plugin.

    The built-in provider, asked last, treats everything as a still image: one frame.

    Called in a decoder process, which has limits and loads the plugins anew: a plugin shares
    nothing in memory with its other hooks. An iterator is asked for its frames one by one.

    Args:
        media: the source, brought to this machine; `media.open()` opens it, `media.path` may lead
            elsewhere by now.
        request: what the client asked for.
        image_size: height and width in pixels that every frame must have.
        limits: what the operator allows, such as `limits.max_video_seconds`.
        done_seconds: times of frames that an attempt before this one has had captioned. They may be
            left out; given again, they are dropped.
    """


@hookspec(firstresult=True)
def combine_captions(
    frames: Sequence[FrameCaptions], request: CaptionRequest
) -> Sequence[Caption] | None:
    """Make the captions of frames into those of the job; None leaves it to the next plugin.

    The built-in one, asked last, keeps all captions of a single frame, and of several frames the
    best of each. Nobody is asked about a caption of all frames together.

    Args:
        frames: in the order of time, at least one; a still image has one.
        request: what the client asked for.

    Returns:
        At least one caption, best first; their ranks are set by captioner.
    """


@hookspec
def process_caption(caption: Caption, request: CaptionRequest) -> Caption | None:
    """Change a caption, as by `dataclasses.replace`; None leaves it as it is.

    A chain: each plugin gets what the one before it returned. Called for each caption of a job.

    Args:
        caption: after `combine_captions`; its rank stays as it is.
        request: what the client asked for.
    """


@hookspec(firstresult=True)
def provide_captioner(settings: Settings) -> CaptionModel | None:
    """Load another model than BLIP; None leaves it to the next plugin, and BLIP is the last.

    Called once, in the process that runs the model. What is returned works on batches of RGB
    squares of `info.image_size` and is never called by two threads at once. One that is a
    `JointCaptionModel`, too, can caption the frames of a video together.

    Args:
        settings: of the worker; `settings.model.id` says which model its operator wants.
    """


# ---- Events ----------------------------------------------------------------------------------


@hookspec
def event_targets(event: Event, job: Job, store: Store) -> Iterable[str] | None:
    """Name whom an event is to be delivered to; every plugin is asked, once an event is recorded.

    Be quick: many events are asked about in a row. A plugin that is slow, hangs or raises is asked
    again later, by itself.

    Args:
        event: what happened, as recorded.
        job: as it stands by now, with its captions.
        store: the database, to read from.

    Returns:
        A short stable text for each target, of at most 255 characters and without secrets: it is
        stored, logged and shown, and given to `deliver_event`. None: nobody.
    """


@hookspec
def deliver_event(event: Event, job: Job, target: str, store: Store) -> Receipt | None:
    r"""Deliver an event to one target that this plugin named. To return is to have delivered it.

    May be called again with the same event and target, even after it was delivered: a worker may
    die before that is recorded. Called by several threads at once, for one target too, and in a
    process of its own for what a worker was lost with; a call that takes longer than
    `CAPTIONER_EVENTS__ATTEMPT_TIMEOUT_SECONDS` has failed.

    Args:
        event: what happened, as recorded; `event.id` is the same at every attempt.
        job: as it stands by now, with its captions.
        target: as `event_targets` gave it.
        store: the database.

    Returns:
        What the target answered, for the delivery log; None: nothing worth keeping.

    Raises:
        DeliveryError: it failed, and how it goes on. After any other exception it is tried again as
            `CAPTIONER_EVENTS__DELAYS_SECONDS` says.
    """


# ---- Observers -------------------------------------------------------------------------------


@hookspec
def observe(event: Event) -> None:
    """Hear of a recorded transition, in the worker that made it.

    In memory only: what waits is lost with the worker, and dropped when too much of it waits.
    """


@hookspec
def worker_ready(settings: Settings) -> None:
    """Hear that this worker's model is loaded and that it will take jobs."""


@hookspec
def worker_stats(stats: WorkerStats) -> None:
    """Hear, at every heartbeat, what this worker has done so far."""


@hookspec
def worker_stopping() -> None:
    """Hear that this worker has finished its last job and is about to end."""

"""The hooks a plugin may implement: this file is the contract.

Two kinds, two policies. *Providers* take part in a job: the first result that is not None wins,
and an error fails the job as `plugin_failed`, naming the plugin. *Observers* are told: their
result is ignored, and an error is logged with the plugin's name and harms nothing.

A plugin names only the arguments it wants.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from captioner.domain import CaptionRequest, Frame, Media
    from captioner.events import Event
    from captioner.model import CaptionModel
    from captioner.settings import Settings

hookspec = pluggy.HookspecMarker("captioner")

# ---- Providers -------------------------------------------------------------------------------


@hookspec(firstresult=True)
def sample_frames(media: Media, request: CaptionRequest, image_size: int) -> Iterable[Frame] | None:
    """Turn media into frames; None leaves it to the next plugin.

    The built-in provider, asked last, treats everything as a still image: one frame.

    Called in a decoder process, which has limits and loads the plugins anew: a plugin shares
    nothing in memory with its other hooks. An iterator is asked for its frames one by one.

    Args:
        media: the source, brought to this machine.
        request: what the client asked for.
        image_size: height and width in pixels that every frame must have.
    """


@hookspec(firstresult=True)
def provide_captioner(settings: Settings) -> CaptionModel | None:
    """Load another model than BLIP; None leaves it to the next plugin, and BLIP is the last.

    Called once, in the process that runs the model. What is returned works on batches of RGB
    squares of `info.image_size` and is never called by two threads at once.

    Args:
        settings: of the worker; `settings.model.id` says which model its operator wants.
    """


# ---- Observers -------------------------------------------------------------------------------


@hookspec
def observe(event: Event) -> None:
    """Hear of a recorded transition, in the worker that made it. Be quick: no network, no disk."""


@hookspec
def worker_ready(settings: Settings) -> None:
    """Hear that this worker's model is loaded and that it will take jobs."""


@hookspec
def worker_stopping() -> None:
    """Hear that this worker has finished its last job and is about to end."""

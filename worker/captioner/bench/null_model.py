"""A model that answers at once, and the plugin that puts it into a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from captioner import hookimpl
from captioner.domain import Caption, CaptionRequest, Frame, Media, ModelInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from captioner.options import GenerationOptions
    from captioner.settings import Settings

#: The model's id is this and the size of its pictures, such as `null-384`.
ID_PREFIX = "null-"
#: Sources that end so need no decoding.
SUFFIX = ".null"

CAPTION = Caption(text="a caption", continuation="a caption", score=-0.5)


class NullModel:
    """Says the same of every picture."""

    def __init__(self, image_size: int) -> None:
        """`image_size` is the height and width of its pictures in pixels."""
        self.info = ModelInfo(
            id=f"{ID_PREFIX}{image_size}",
            revision="null",
            dtype="float32",
            device="cpu",
            backend="null",
            image_size=image_size,
        )

    def check(self, options: GenerationOptions) -> None:
        """Take any options."""

    def generate(
        self, images: Sequence[NDArray[np.uint8]], options: Sequence[GenerationOptions]
    ) -> list[list[Caption]]:
        """One caption an image, whatever the options."""
        del options
        return [[CAPTION]] * len(images)

    def close(self) -> None:
        """Nothing is held."""


@hookimpl
def provide_captioner(settings: Settings) -> NullModel | None:
    """The null model where the settings name one, else whatever they do name."""
    prefix, _, size = settings.model.id.rpartition(ID_PREFIX)
    return NullModel(int(size)) if not prefix and size.isdecimal() else None


@hookimpl
def sample_frames(media: Media, request: CaptionRequest, image_size: int) -> list[Frame] | None:
    """A black frame for a source that needs no decoding; pictures are left to the decoder."""
    del request
    if media.path.suffix != SUFFIX:
        return None
    return [Frame(np.zeros((image_size, image_size, 3), np.uint8))]


@hookimpl
def worker_ready() -> None:
    """Let the worker be asked what its engine has done."""
    # Here, because the engine and the decoders load this module without Celery.
    from captioner.bench import remote  # noqa: F401  # registers its command

"""What an engine asks of a model: BLIP, a plugin's, or the fake one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from captioner.domain import ModelInfo
from captioner.options import GenerationOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Pictures that one joint caption may be made of.
MAX_JOINT_PICTURES = 32


class Generated(Protocol):
    """One generated caption, as `captioner.inference` returns it."""

    @property
    def text(self) -> str: ...  # noqa: D102  # explained in captioner.inference
    @property
    def continuation(self) -> str: ...  # noqa: D102
    @property
    def score(self) -> float: ...  # noqa: D102
    @property
    def beam_score(self) -> float | None: ...  # noqa: D102


class CaptionModel(Protocol):
    """What the engine needs of a model, as `captioner.inference` and the fake one have it."""

    @property
    def info(self) -> ModelInfo:
        """Which model this is."""
        ...

    def check(self, options: GenerationOptions) -> None:
        """Raise `JobError` if these options can never work with this model."""
        ...

    def generate(
        self, images: Sequence[NDArray[np.uint8]], options: Sequence[GenerationOptions]
    ) -> Sequence[Sequence[Generated]]:
        """Captions of each image, best first. The images are only lent, and not to be changed.

        Raises:
            DeviceLostError: no more can be captioned in this process; the engine starts another.
        """
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


@runtime_checkable
class JointCaptionModel(Protocol):
    """What a model has besides when it can caption several pictures together."""

    def generate_joint(
        self, groups: Sequence[Sequence[NDArray[np.uint8]]], options: Sequence[GenerationOptions]
    ) -> Sequence[Sequence[Generated]]:
        """One list of captions per group of 1 to `MAX_JOINT_PICTURES` pictures, best first.

        A group of one has the captions that `generate` would give it.
        """
        ...

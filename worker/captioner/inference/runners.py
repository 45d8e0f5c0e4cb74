"""Who executes the model, as it is written; there are others in unprojected.py, cuda_graphs.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from captioner.inference.blip import Blip, Cache
from captioner.inference.captions import Captions
from captioner.inference.decoding import Decoding, Search
from captioner.inference.processors import Processors

#: A method of `Decoding`: `begin`, `start`, `read` or `step`.
Work = Callable[[Decoding], Tensor]


class Runner(Protocol):
    """What executes the model."""

    model: Blip
    #: Numbers of slots and of tokens are rounded up to a multiple, so that batches share memory.
    multiple: int
    #: After so many steps it is asked which images have ended.
    steps_between_questions: int

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels `[B, side, side, 3]` to image states `[B, N, W]`."""

    def place(
        self, states: Tensor, captions: Captions, search: Search, processors: Processors
    ) -> Decoding:
        """Put together what is to be generated, on the device; valid until the next call.

        Args:
            states: `[B, N, W]`, on the device.
            captions: in main memory, as the rest.
            search: how tokens are chosen.
            processors: and what scores they have.
        """

    def do(self, decoding: Decoding, work: Work) -> Tensor:
        """`work(decoding)`; the next call may overwrite the result."""

    def release(self) -> None:
        """Give back memory held between calls."""


class EagerRunner:
    """The model as it is written."""

    multiple = 1
    steps_between_questions = 1

    def __init__(self, model: Blip) -> None:
        """The model is shared, not copied."""
        self.model = model

    def encode(self, pixels: Tensor) -> Tensor:
        """See `Runner.encode`."""
        states: Tensor = self.model.vision(pixels)
        return states

    def place(
        self, states: Tensor, captions: Captions, search: Search, processors: Processors
    ) -> Decoding:
        """See `Runner.place`."""
        device = states.device
        return Decoding(
            decoder=self.model.text,
            states=states,
            cache=self._new_cache(states, captions),
            captions=captions.to(device),
            search=search.to(device),
            processors=processors.to(device),
        )

    def do(self, decoding: Decoding, work: Work) -> Tensor:
        """See `Runner.do`."""
        return work(decoding)

    def release(self) -> None:
        """Nothing is held."""

    def _new_cache(self, states: Tensor, captions: Captions) -> Cache:
        return self.model.text.new_cache(states, captions.seen.shape[2])

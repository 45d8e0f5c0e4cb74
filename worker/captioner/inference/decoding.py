"""B images being captioned at once: one step of it, by whatever rules.

The rules are in beams.py, sampling.py and processors.py, what grows in captions.py.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from captioner.inference.blip import Cache, TextDecoder
from captioner.inference.captions import Captions, Generated
from captioner.inference.processors import Processors
from captioner.inference.rows import Rows


class Search(Rows, ABC):
    """How tokens are chosen: state of B images, and the rules."""

    __slots__ = ()

    #: Whether to choose is the same work whatever the options are.
    recordable: bool
    #: `[B, K]` in float64: sums of the model's log-probabilities.
    plain: Tensor
    #: Bool `[B]`.
    ended: Tensor
    #: Whether scores are log-probabilities; else logits.
    normalised: ClassVar[bool]

    @abstractmethod
    def choose(
        self, plain: Tensor, processed: Tensor, captions: Captions
    ) -> tuple[Tensor, Tensor | None]:
        """Choose the captions' next tokens.

        Args:
            plain: `[B, K, V]`, the model's log-probabilities.
            processed: `[B, K, V]`, the scores changed by the processors.
            captions: what they are so far.

        Returns:
            Tokens `[B, K]`, and the captions `[B, K]` that they continue; None: each itself.
        """

    @abstractmethod
    def results(self, captions: Captions, images: Sequence[int]) -> list[list[Generated]]:
        """All K captions of each of these images, best first."""


@dataclass(slots=True)
class Decoding:
    """Captions being generated, and all that takes part in it."""

    decoder: TextDecoder
    #: `[B, N, W]`, of the images.
    states: Tensor
    cache: Cache
    captions: Captions
    search: Search
    processors: Processors

    @property
    def images(self) -> int:
        """B."""
        return len(self.captions.ids)

    @property
    def recordable(self) -> bool:
        """Whether a step is the same work whatever the options are."""
        return self.search.recordable and not self.processors.ngram_sizes

    def begin(self) -> Tensor:
        """Look at the images and read the prompts, once per image.

        Returns:
            float32 logits `[B, 1, V]` of the first token, the same for all captions of an image.
        """
        for tensor in (*self.cache.token_keys, *self.cache.token_values):
            # A slot that is not seen counts 0 times; times an infinity left there that is NaN.
            tensor.zero_()
        self.decoder.project_image(self.states, self.cache)
        tokens = self.captions.prompts(self.states.dtype)
        return self.decoder.logits(self.decoder(tokens, self.cache)[:, -1:])

    def start(self) -> Tensor:
        """Look at the images, read the prompts, and choose. Returns what `choose` does."""
        return self.choose(self.begin())

    def read(self) -> Tensor:
        """Read the newest tokens: float32 logits `[B, K, V]` of the next ones."""
        tokens = self.captions.unread(self.states.dtype)
        return self.decoder.logits(self.decoder(tokens, self.cache))

    def choose(self, logits: Tensor) -> Tensor:
        """Choose and append a token to each caption.

        Args:
            logits: `[B, K, V]`, or `[B, 1, V]` for all captions of an image.

        Returns:
            `[B, K]`: sums of the model's log-probabilities.
        """
        logits = logits.expand(-1, self.captions.ids.shape[1], -1)
        plain = logits.log_softmax(-1)
        processed = self.processors(plain if self.search.normalised else logits, self.captions)
        self.captions.take(*self.search.choose(plain, processed, self.captions))
        return self.search.plain

    def step(self) -> Tensor:
        """Read the newest tokens and choose the next ones. Returns what `choose` does."""
        return self.choose(self.read())

    def keep(self, images: Sequence[int]) -> None:
        """Go on with these images, as `without` orders them."""
        # The image states' keys and values are large: only those that fill a gap are moved.
        gaps = [place for place, image in enumerate(images) if image != place]
        if gaps:
            device = self.captions.ids.device
            target = torch.tensor(gaps, device=device)
            source = torch.tensor([images[place] for place in gaps], device=device)
            for tensor in itertools.chain.from_iterable(self.cache.everything()):
                tensor[target] = tensor[source]
        self.states = self.states[: len(images)]  # not read any more, and not moved
        self.cache = self.cache.first(len(images))
        self.captions = self.captions.keep(images)
        self.search = self.search.keep(images)
        self.processors = self.processors.keep(images)


def without(finished: Sequence[bool]) -> list[int]:
    """The images that are not finished, moved as little as can be: from behind into the gaps."""
    going = [image for image, ended in enumerate(finished) if not ended]
    behind = iter(reversed([image for image in going if image >= len(going)]))
    return [next(behind) if finished[place] else place for place in range(len(going))]

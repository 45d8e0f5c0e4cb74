"""Greedy search and sampling: captions of one image that do not know of each other.

A sampled token is the one in whose share of the distribution a uniform number falls. The numbers
of a request are drawn beforehand from its own generator, on the CPU, so that neither its
neighbours nor the device nor how far others have got changes what it draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from captioner.inference.captions import Captions, Generated, Request
from captioner.inference.decoding import Search
from captioner.inference.processors import warp
from captioner.options import GenerationOptions


@dataclass(slots=True)
class Sampling(Search):
    """The captions of B images, K each: sampled, or K = 1 and greedy."""

    #: `[B, W, K]`, from 0 to below 1.
    uniform: Tensor
    #: `[B]`: most new tokens.
    longest: Tensor
    #: `[B, K]`: new tokens, sums of the model's log-probabilities, whether that is all.
    lengths: Tensor
    plain: Tensor
    captions_ended: Tensor
    #: `[B]`.
    ended: Tensor
    options: list[GenerationOptions]
    #: The token that ends a caption.
    sep: int
    #: Each image that is sampled goes its own way.
    recordable: bool

    normalised: ClassVar[bool] = False

    @classmethod
    def of(cls, requests: Sequence[Request], captions: Captions, sep: int) -> Sampling:
        """All captions at their beginning."""
        images, count, width = captions.ids.shape
        device = captions.ids.device
        options = [request.options for request in requests]
        numbers = torch.zeros(images, width, count, dtype=torch.float64)
        for row, request in zip(numbers, requests, strict=True):
            if request.options.do_sample:
                row[: request.options.max_new_tokens] = uniform(request)
        lengths = torch.zeros(images, count, dtype=torch.long, device=device)
        return cls(
            uniform=numbers.to(device),
            longest=torch.tensor([one.max_new_tokens for one in options], device=device),
            lengths=lengths,
            plain=torch.zeros_like(lengths, dtype=torch.float64),
            captions_ended=torch.zeros_like(lengths, dtype=torch.bool),
            ended=torch.zeros(images, dtype=torch.bool, device=device),
            options=options,
            sep=sep,
            recordable=not any(one.do_sample for one in options),
        )

    def choose(self, plain: Tensor, processed: Tensor, captions: Captions) -> tuple[Tensor, None]:
        """See `Search.choose`."""
        tokens = processed.argmax(2)
        if not self.recordable:
            numbers = self.uniform.index_select(1, captions.step.view(1))[:, 0]
            for image, options in enumerate(self.options):
                if options.do_sample:
                    tokens[image] = draw(warp(processed[image], options), numbers[image])
        going = ~self.captions_ended
        self.lengths += going
        # What an ended caption would have gone on with may be no number, and no factor mends that.
        self.plain += torch.where(going, plain.gather(2, tokens[:, :, None])[:, :, 0], 0.0)
        last = captions.step + 1 >= self.longest
        self.captions_ended |= (tokens == self.sep) | last[:, None]
        self.ended.copy_(self.captions_ended.all(1))
        return tokens, None

    def results(self, captions: Captions, images: Sequence[int]) -> list[list[Generated]]:
        """See `Search.results`."""
        rows = torch.tensor(images, device=self.longest.device)
        # One transfer each: every one waits for the device.
        tokens = captions.ids[rows, :, captions.prompt_slots :].tolist()
        lengths, plain = self.lengths[rows].tolist(), self.plain[rows].tolist()
        return [
            sorted(
                (
                    Generated(tuple(said[: lengths[i][k]]), plain[i][k])
                    for k, said in enumerate(tokens[i])
                ),
                key=lambda one: one.log_probability / len(one.tokens),
                reverse=True,
            )
            for i in range(len(images))
        ]


def uniform(request: Request) -> Tensor:
    """`[max_new_tokens, K]` float64 numbers of a request, from 0 to below 1."""
    generator = torch.Generator().manual_seed(request.seed)
    shape = (request.options.max_new_tokens, request.captions)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def draw(scores: Tensor, numbers: Tensor) -> Tensor:
    """Draw a token per row.

    Args:
        scores: `[K, V]`, -inf where a token is out of the question.
        numbers: `[K]` in float64, from 0 to below 1.

    Returns:
        `[K]`.
    """
    shares = scores.double().softmax(-1).cumsum(-1)
    whole = shares[:, -1:].contiguous()
    drawn = torch.searchsorted(shares, numbers[:, None] * whole, right=True)
    # A number next to 1 may be rounded up to it: the last token that has a share. A token that is
    # not there would end a CUDA process.
    last = torch.searchsorted(shares, whole)
    return torch.minimum(drawn, last)[:, 0].clamp(max=scores.shape[-1] - 1)

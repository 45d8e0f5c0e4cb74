"""Greedy search and sampling: captions of one image that do not know of each other.

A sampled token is the one in whose share of the distribution a uniform number falls. The numbers
of a request are drawn beforehand from its own generator, on the CPU, so that neither its
neighbours nor the device nor how far others have got changes what it draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.inference.decoding import Decoding, Generated, Request
from captioner.inference.processors import warp


class Sampling:
    """The captions of B images, K each: sampled, or K = 1 and greedy."""

    def __init__(self, requests: Sequence[Request], sep: int, device: torch.device) -> None:
        """`sep` is the token that ends a caption."""
        self._options = [request.options for request in requests]
        self._sep = sep
        self._longest = torch.tensor([one.max_new_tokens for one in self._options], device=device)
        longest, captions = int(self._longest.max()), requests[0].captions
        shape = (len(requests), captions)
        #: `[B, longest, K]`, from 0 to below 1.
        self._uniform = torch.zeros(len(requests), longest, captions, dtype=torch.float64)
        for row, request in zip(self._uniform, requests, strict=True):
            if request.options.do_sample:
                row[: request.options.max_new_tokens] = uniform(request)
        self._uniform = self._uniform.to(device)
        self._tokens = torch.zeros(*shape, longest, dtype=torch.long, device=device)
        self._lengths = torch.zeros(shape, dtype=torch.long, device=device)
        self._plain = torch.zeros(shape, dtype=torch.float64, device=device)
        self._ended = torch.zeros(shape, dtype=torch.bool, device=device)

    @property
    def ended(self) -> Tensor:
        """`[B]`."""
        return self._ended.all(1)

    def choose(self, plain: Tensor, processed: Tensor, decoding: Decoding) -> tuple[Tensor, None]:
        """Choose the captions' next tokens.

        Args:
            plain: `[B, K, V]`, the model's log-probabilities.
            processed: `[B, K, V]`, its logits changed by the processors.
            decoding: knows the step.

        Returns:
            Tokens `[B, K]`; no caption continues another.
        """
        step = decoding.step
        tokens = processed.argmax(2)
        for image, options in enumerate(self._options):
            if options.do_sample:
                scores = warp(processed[image], options)
                tokens[image] = draw(scores, self._uniform[image, step])
        going = ~self._ended
        self._tokens[:, :, step] = tokens
        self._lengths += going
        self._plain += plain.gather(2, tokens[:, :, None])[:, :, 0] * going
        self._ended |= (tokens == self._sep) | (step + 1 >= self._longest)[:, None]
        return tokens, None

    def results(self, image: int, wanted: int) -> list[Generated]:
        """The captions of one image, the likeliest first."""
        tokens, lengths = self._tokens[image].tolist(), self._lengths[image].tolist()
        plain = self._plain[image].tolist()
        captions = [Generated(tuple(tokens[k][: lengths[k]]), plain[k]) for k in range(wanted)]
        return sorted(captions, key=lambda one: one.log_probability / len(one.tokens), reverse=True)

    def keep(self, images: Sequence[int]) -> None:
        """Go on with these images, in this order."""
        order = torch.tensor(images, device=self._longest.device)
        self._options = [self._options[image] for image in images]
        self._longest, self._uniform = self._longest[order], self._uniform[order]
        self._tokens, self._lengths = self._tokens[order], self._lengths[order]
        self._plain, self._ended = self._plain[order], self._ended[order]


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
    return torch.searchsorted(shares, numbers[:, None] * shares[:, -1:], right=True)[:, 0]

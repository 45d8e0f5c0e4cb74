"""Kernels of our own beside PyTorch's operators, tried once when a model is loaded.

A device that is not known yet, or a compiler that is wrong, costs speed and no caption. A kernel
that reads where it must not would cost the device; tests look for that, on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from captioner.inference.blip import Blip, Tokens, attend_tokens
from captioner.inference.kernels import MOST_QUERIES, Kernels, suits_attention, suits_norm

#: Between a kernel's result and PyTorch's, of the length of the latter; rounding to eight bits
#: makes 3e-3 of it.
_TOLERANCE = 1e-2
#: Images, or rows, and slots that kernels are tried on.
_TRIED = 5
_SLOTS_TRIED = 40


def require_right(model: Blip, kernels: Kernels) -> None:
    """Run each kernel on random numbers beside PyTorch's operators.

    Raises:
        RuntimeError: one of them gives something else, or does not run.
    """
    pairs = zip(_trial(model, kernels), _trial(model, PlainKernels()), strict=True)
    for number, (found, expected) in enumerate(pairs):
        difference = (found.float() - expected.float()).norm() / expected.float().norm()
        if not difference <= _TOLERANCE:  # NaN, too
            raise RuntimeError(f"result {number} of the kernels is wrong by {difference:.1e}")


def _trial(model: Blip, kernels: Kernels) -> list[Tensor]:
    """What kernels give of random numbers, the same at each call, at the model's own shapes."""
    weight, text = model.vision.norm.weight, model.text
    # Of its own: a client's seed is nobody else's business.
    generator = torch.Generator(weight.device).manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=weight.device).to(weight.dtype)

    results = []
    for width in filter(suits_norm, {len(weight), len(text.norm.weight)}):
        total = torch.full((_TRIED, width), torch.nan).to(weight)  # not what was there before
        norm = (numbers(width), numbers(width), 1e-5, total)
        results += [kernels.add_norm(numbers(_TRIED, width), numbers(_TRIED, width), *norm), total]
    heads, states = text.heads, len(model.vision.positions)
    size = text.token_embedding.embedding_dim // heads
    # Each number of queries is a kernel of its own.
    for queries in range(1, MOST_QUERIES + 1):
        if suits_attention(queries, states, size):
            query = numbers(_TRIED, queries, heads, size).transpose(1, 2)
            seen = [numbers(_TRIED, heads, states, size) for _ in range(2)]
            results.append(kernels.attend_image(query, seen[0], seen[1]))
        if not suits_attention(queries, _SLOTS_TRIED, size):
            continue
        cached = [numbers(_TRIED, heads, _SLOTS_TRIED, size) for _ in range(2)]
        mask = weight.new_zeros(_TRIED, 1, queries, _SLOTS_TRIED)
        mask[..., _SLOTS_TRIED // 2 :] = -torch.inf
        slots = torch.arange(1, 1 + queries, device=weight.device)
        joined = numbers(_TRIED, queries, 3 * heads * size)
        results += [kernels.attend_tokens(joined, slots, mask, *cached), *cached]
    return results


class PlainKernels:
    """The same in PyTorch's own operators: what the kernels are compared with."""

    def add_norm(
        self,
        stream: Tensor,
        change: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        epsilon: float,
        total: Tensor | None,
    ) -> Tensor:
        """See `Kernels.add_norm`."""
        x = stream if change is None else stream + change
        if total is not None:
            total.copy_(x)
        return functional.layer_norm(x, weight.shape, weight, bias, epsilon)

    def attend_image(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Kernels.attend_image`."""
        return functional.scaled_dot_product_attention(query, keys, values)

    def attend_tokens(
        self, joined: Tensor, slots: Tensor, mask: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """See `Kernels.attend_tokens`."""
        nothing = slots.new_empty(0)
        return attend_tokens(joined, Tokens(nothing, nothing, slots, mask), keys, values)

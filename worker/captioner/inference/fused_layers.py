"""Layers of the model with kernels of our own: what acceleration.py puts in the place of blip.py's.

A sum with the stream is left to the normalisation that follows, which reads and writes it anyway;
attention of a few queries is made for few; and tokens' keys and values go to the cache on the way.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioner.inference.blip import (
    Blip,
    ResidualLinear,
    TextLayer,
    Tokens,
    VisionLayer,
    attend_tokens,
)
from captioner.inference.kernel_trial import require_right
from captioner.inference.kernels import Kernels, suits_attention, suits_norm

#: See `FusedImageAttention`.
_MOST_CAPTIONS = 5
_READ_BYTES = 16


def fuse(model: Blip, kernels: Kernels) -> None:
    """Let a loaded model run with these kernels, wherever its shape suits them.

    Raises:
        RuntimeError: they do not give what PyTorch gives, or do not run; the model is as before.
    """
    require_right(model, kernels)
    text, vision = model.text, model.vision
    for layer in cast(Iterable[TextLayer], text.layers):
        layer.attend_tokens = FusedTokenAttention(kernels)
        layer.attend_image = FusedImageAttention(kernels)
        layer.project = project_in_place
    text.by_state = True
    if not suits_norm(vision.norm.weight.numel()) or not suits_norm(text.norm.weight.numel()):
        return
    for module in chain(vision.modules(), text.modules()):
        for name, child in module.named_children():
            if isinstance(child, ResidualLinear):
                setattr(module, name, DeferringLinear(child))
            elif isinstance(child, nn.LayerNorm):
                # After a layer of the decoder the stream is what is normalised, not the sum.
                keeps_sum = isinstance(module, VisionLayer)
                setattr(module, name, SummingNorm(child, kernels, keeps_sum=keeps_sum))


class Sum:
    """A stream and what is to be added to it, when it is next normalised."""

    __slots__ = ("_total", "change", "stream")

    def __init__(self, stream: Tensor, change: Tensor) -> None:
        """Both `[…, W]`."""
        self.stream, self.change = stream, change
        self._total: Tensor | None = None

    def new_total(self) -> Tensor:
        """Where to put the sum."""
        self._total = torch.empty_like(self.stream)
        return self._total

    @property
    def total(self) -> Tensor:
        """The sum, `[…, W]`."""
        return self.stream + self.change if self._total is None else self._total


class DeferringLinear(nn.Module):
    """A `ResidualLinear` that leaves the sum to whoever normalises it."""

    def __init__(self, layer: ResidualLinear) -> None:
        """Its parameters are shared."""
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor, stream: Tensor | Sum) -> Sum:
        """`[…, inputs]` and a stream `[…, outputs]`."""
        change = functional.linear(x, self.weight, self.bias)
        return Sum(stream.total if isinstance(stream, Sum) else stream, change)


class SummingNorm(nn.Module):
    """A layer norm that adds up what it is given."""

    def __init__(self, norm: nn.LayerNorm, kernels: Kernels, *, keeps_sum: bool) -> None:
        """Its parameters are shared; `keeps_sum` says whether anybody reads the sum itself."""
        super().__init__()
        self.weight, self.bias, self.eps = aligned(norm.weight), aligned(norm.bias), norm.eps
        self._kernels, self._keeps_sum = kernels, keeps_sum

    def forward(self, x: Tensor | Sum) -> Tensor:
        """`[…, W]` to the same."""
        norm = (self.weight, self.bias, self.eps)
        if isinstance(x, Tensor):
            return self._kernels.add_norm(x.contiguous(), None, *norm, None)
        total = x.new_total() if self._keeps_sum else None
        return self._kernels.add_norm(x.stream.contiguous(), x.change, *norm, total)


def aligned(parameter: nn.Parameter) -> nn.Parameter:
    """The same at an address that kernels read 16 bytes from, as almost every one is."""
    if parameter.data_ptr() % _READ_BYTES == 0:
        return parameter
    return nn.Parameter(parameter.detach().clone(), requires_grad=False)


class WidenedLinear(nn.Module):
    """A linear layer of half types whose sums are float32, and are not rounded."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """`[outputs, inputs]` in a half type, and float32 `[outputs]`."""
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), bias

    def forward(self, x: Tensor) -> Tensor:
        """`[…, inputs]` to float32 `[…, outputs]`."""
        out = torch.mm(x.flatten(0, -2), self.weight.t(), out_dtype=torch.float32)
        return out.add_(self.bias).view(*x.shape[:-1], -1)


def project_in_place(projection: nn.Linear, states: Tensor, keys: Tensor, _values: Tensor) -> None:
    """What `blip.project` does, where keys and values lie as one product leaves them: no copies."""
    width = projection.out_features
    joined = keys.as_strided((keys.shape[0] * keys.shape[2], width), (width, 1))
    torch.addmm(projection.bias, states.flatten(0, 1), projection.weight.t(), out=joined)


class FusedTokenAttention:
    """A decoder layer's attention among tokens; see `blip.attend_tokens`."""

    def __init__(self, kernels: Kernels) -> None:
        """Whatever the layer."""
        self._kernels = kernels

    def __call__(self, joined: Tensor, tokens: Tokens, keys: Tensor, values: Tensor) -> Tensor:
        """`[B, Q, 3W]` to `[B, H, Q, D]`."""
        if suits_attention(joined.shape[1], *keys.shape[2:]):
            return self._kernels.attend_tokens(joined, tokens.slots, tokens.mask, keys, values)
        return attend_tokens(joined, tokens, keys, values)


class FusedImageAttention:
    """A decoder layer's attention to the image, for two to five captions of it.

    For one, PyTorch's choice is as fast, and for more it is faster (cuDNN's kernel on an H200).
    """

    def __init__(self, kernels: Kernels) -> None:
        """Whatever the layer."""
        self._kernels = kernels

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`[B, H, Q, D]` and twice `[B, H, N, D]` to `[B, H, Q, D]`."""
        queries = query.shape[2]
        if 1 < queries <= _MOST_CAPTIONS and suits_attention(queries, *keys.shape[2:]):
            return self._kernels.attend_image(query, keys, values)
        return functional.scaled_dot_product_attention(query, keys, values)

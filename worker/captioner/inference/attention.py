"""Attention other than PyTorch's own choice of kernel, where that is faster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from captioner.inference.blip import Attention, Tokens, attend_tokens, write_cache

_RUNS = 5
#: Of the default's time; a smaller gain is noise.
_WORTHWHILE = 0.95
#: `attend_by_products` pads queries to a multiple of rows, and keeps scores of so many heads in the
#: cache: 36 ms for 8 images on two cores of an AMD EPYC (Zen 5), 32 ms padded, 30 ms with both.
_ROWS = 16
_HEADS_AT_ONCE = 4
#: Captions of an image, in `attend_few_tokens`.
_FEW_TOKENS = 5
_BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


def attend_by_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as two products and a softmax, a few heads at a time.

    PyTorch's kernel for CPUs multiplies with MKL, which makes nothing of AVX512-BF16 on a CPU that
    is not Intel's; products by themselves go to oneDNN, which does. Scores are rounded to the type
    before the softmax, as transformers rounds them.

    Args:
        query: `[B, H, N, D]`.
        key: of the same shape.
        value: of the same shape.

    Returns:
        `[B, H, N, D]`, in memory as `[B, N, H, D]`.
    """
    images, heads, states, width = query.shape
    out = query.new_empty(images, states, heads, width).transpose(1, 2)
    # Rows of nothing: for 577 rows, 9 times 64 and one, oneDNN takes a fifth longer than for 592.
    rows = -(-states // _ROWS) * _ROWS
    asked = query.new_zeros(min(heads, _HEADS_AT_ONCE), rows, width)
    nothing = query.new_empty(1, 1, 1)
    for image in range(images):
        for start in range(0, heads, _HEADS_AT_ONCE):
            some = slice(start, start + _HEADS_AT_ONCE)
            queries = asked[: len(query[image, some])]
            queries[:, :states] = query[image, some]
            keys = key[image, some].transpose(1, 2)
            scores = torch.baddbmm(nothing, queries, keys, beta=0, alpha=width**-0.5)
            out[image, some] = (scores.softmax(-1) @ value[image, some])[:, :states]
    return out


def attend_few(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of a few queries to many keys, as two products.

    PyTorch's own kernel for CPUs is made for many queries; for one to five of them, to the 577
    states of an image, this is 3 to 5 times as fast. A prompt's are read once, and come here, too.

    Args:
        query: `[B, H, Q, D]`.
        key: `[B, H, N, D]`.
        value: like the keys.
    """
    return attention_weights(query, key, query.shape[-1] ** -0.5) @ value


def attend_few_tokens(joined: Tensor, tokens: Tokens, keys: Tensor, values: Tensor) -> Tensor:
    """What `blip.attend_tokens` does, as two products; of many tokens, a prompt, as it does it."""
    queries, size = joined.shape[1], keys.shape[3]
    if queries > _FEW_TOKENS:
        return attend_tokens(joined, tokens, keys, values)
    query = write_cache(joined, tokens, keys, values)
    scores = (query @ keys.transpose(2, 3)).float().mul_(size**-0.5).add_(tokens.mask)
    return scores.softmax(-1).to(keys.dtype) @ values


def attention_weights(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """How much of each key's value a query gets: softmax of their products, in float32 between.

    The keys come first in the product: oneDNN reads the first factor as it lies in memory, and
    copies the second into a layout of its own at each call, which should be the smaller one.

    Args:
        query: `[…, Q, D]`.
        key: `[…, N, D]`.
        scale: of the products.

    Returns:
        `[…, Q, N]`, in the type of the keys.
    """
    scores = (key @ query.transpose(-1, -2)).transpose(-1, -2)
    scores = scores.to(torch.float32, memory_format=torch.contiguous_format)
    return scores.mul_(scale).softmax(-1).to(key.dtype)


def fastest_attention(
    shape: tuple[int, int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    candidates: Sequence[Attention] | None = None,
) -> Attention:
    """Time each kernel there is on random numbers, and return the fastest; takes moments.

    PyTorch chooses by rules of its own, which follow neither every new device nor this shape.

    Args:
        shape: `[B, H, N, D]` of queries, keys and values.
        device: where.
        dtype: kernels differ by rounding, which float32 and float64 promise not to.
        candidates: what to try beside PyTorch's own choice; all there are, where not said.
    """
    images, heads, states, width = shape
    # In memory as the encoder's joined product leaves them.
    joined = torch.randn(images, states, 3, heads, width, device=device).to(dtype)
    query, key, value = joined.permute(2, 0, 3, 1, 4).unbind(0)
    default: Attention = functional.scaled_dot_product_attention
    best, least = default, _seconds(default, query, key, value) * _WORTHWHILE
    for candidate in _candidates(device) if candidates is None else candidates:
        try:
            seconds = _seconds(candidate, query, key, value)
        except RuntimeError:  # not for this device, type or shape
            continue
        if seconds < least:
            best, least = candidate, seconds
    return best


def _candidates(device: torch.device) -> list[Attention]:
    kernels = [_on(backend) for backend in _BACKENDS]
    return [*kernels, attend_by_products] if device.type == "cpu" else kernels


def _on(backend: SDPBackend) -> Attention:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return functional.scaled_dot_product_attention(query, key, value)

    return attend


def _seconds(attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> float:
    """The median of a few runs, each to its very end, after one to warm up."""
    took = []
    for _ in range(1 + _RUNS):
        _wait_for(query.device)
        start = time.perf_counter()
        attention(query, key, value)
        _wait_for(query.device)
        took.append(time.perf_counter() - start)
    return median(took[1:])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

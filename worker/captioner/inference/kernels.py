"""CUDA kernels of our own: what kernels.cu computes, for which shapes, and how it is called."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from captioner.inference.nvrtc import Argument, Blocks, launch, require_nvrtc

#: Numbers that are read at a time.
_PACK = 8
_LANES_OF_A_WARP = 32
#: As kernels.cu says.
_THREADS = {"attend_image": 256, "attend_tokens": 128}
_MOST_THREADS = 1024
#: More captions of an image leave too few registers.
MOST_QUERIES = 8
#: Shared memory of a block that is there without asking for more, on every device, less the sums
#: that `attend` keeps beside the scores: with one byte more a launch is refused.
_SHARED_BYTES = 48 * 1024 - torch.float32.itemsize * MOST_QUERIES


class Kernels(Protocol):
    """What kernels.cu computes; see there."""

    def add_norm(
        self,
        stream: Tensor,
        change: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        epsilon: float,
        total: Tensor | None,
    ) -> Tensor:
        """The layer norm of a stream and what is added to it.

        Args:
            stream: `[…, W]`, contiguous.
            change: likewise, or nothing.
            weight: `[W]`.
            bias: `[W]`.
            epsilon: of the layer norm.
            total: where the sum goes, rounded, if anybody wants it.
        """

    def attend_image(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention to the image.

        Args:
            query: `[B, H, Q, D]`.
            keys: `[B, H, N, D]`, a head's numbers side by side.
            values: like the keys, in memory, too.

        Returns:
            `[B, H, Q, D]`.
        """

    def attend_tokens(
        self, joined: Tensor, slots: Tensor, mask: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Keys and values of `joined` `[B, Q, 3W]` to their slots `[Q]`; attention to all slots.

        Args:
            joined: queries, keys, values.
            slots: where `keys` and `values` take the new ones.
            mask: `[B, 1, Q, S]`, 0 or -inf.
            keys: `[B, H, S, D]`, changed.
            values: likewise.

        Returns:
            `[B, H, Q, D]`.
        """


def suits_norm(width: int) -> bool:
    """Whether rows of so many numbers can be normalised."""
    return width % _PACK == 0 and width <= _PACK * _MOST_THREADS


def suits_attention(queries: int, states: int, size: int) -> bool:
    """Whether attention of so many queries to so many states, with heads of this size, fits."""
    lanes = size // _PACK
    return (
        size % _PACK == 0
        and lanes in {1, 2, 4, 8, 16, 32}
        and queries <= MOST_QUERIES
        and _scores_bytes("attend_image", queries, states, size) <= _SHARED_BYTES
    )


class CudaKernels:
    """Kernels of one device and half type."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """Nothing is compiled before it is called.

        Raises:
            ImportError: this PyTorch comes without what compiles them.
        """
        self._device = device
        self._defines = ("-DBFLOAT16",) if dtype == torch.bfloat16 else ()
        require_nvrtc()

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
        width = stream.shape[-1]
        normalised = torch.empty_like(stream)
        warps = -(-width // _PACK // _LANES_OF_A_WARP)
        self._launch(
            "add_norm",
            (f"-DWIDTH={width}",),
            (stream.numel() // width, warps * _LANES_OF_A_WARP, 0),
            (stream, change, weight, bias, total, normalised, epsilon),
        )
        return normalised

    def attend_image(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Kernels.attend_image`."""
        images, heads, queries, size = query.shape
        states = keys.shape[2]
        out = query.new_empty(images, queries, heads, size)
        self._launch(
            "attend_image",
            (f"-DQUERIES={queries}", f"-DSIZE={size}"),
            _blocks("attend_image", images * heads, queries, states, size),
            (
                *(query.transpose(1, 2).contiguous(), keys, values, out, heads, states),
                *(stride // _PACK for stride in keys.stride()[:3]),
                _scale(size),
            ),
        )
        return out.transpose(1, 2)

    def attend_tokens(
        self, joined: Tensor, slots: Tensor, mask: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """See `Kernels.attend_tokens`."""
        images, heads, states, size = keys.shape
        queries = joined.shape[1]
        out = joined.new_empty(images, queries, heads, size)
        self._launch(
            "attend_tokens",
            (f"-DQUERIES={queries}", f"-DSIZE={size}"),
            _blocks("attend_tokens", images * heads, queries, states, size),
            (joined, keys, values, slots, mask, out, heads, states, _scale(size)),
        )
        return out.transpose(1, 2)

    def _launch(
        self,
        name: str,
        defines: tuple[str, ...],
        blocks: Blocks,
        arguments: tuple[Argument, ...],
    ) -> None:
        launch(name, (*defines, *self._defines), self._device, blocks, arguments)


def _blocks(name: str, count: int, queries: int, states: int, size: int) -> Blocks:
    return count, _THREADS[name], _scores_bytes(name, queries, states, size)


def _scores_bytes(name: str, queries: int, states: int, size: int) -> int:
    """Shared memory for a block's scores, and for its warps' results after that."""
    warps = _THREADS[name] // _LANES_OF_A_WARP
    return torch.float32.itemsize * queries * max(states, warps * size)


def _scale(size: int) -> float:
    """Of the products of queries and keys, for powers of two instead of e."""
    return 1 / (math.sqrt(size) * math.log(2))

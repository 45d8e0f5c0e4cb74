"""Linear layers for CPUs: weights are laid out beforehand, as a library's kernels read them."""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn

from captioner.inference.blip import GeluLinear

#: Private to PyTorch, as its compiler uses them: there are no public names.
_ONEDNN: Any = torch.ops.mkldnn
#: As `platform` names x86-64, on Linux and macOS and on Windows.
_MACHINES = ("x86_64", "amd64")


def onednn_runs(dtype: torch.dtype) -> bool:
    """True where this PyTorch has the operators that `PackedLinear` needs, and this CPU runs them.

    Without AVX-512 a weight of bfloat16 cannot even be laid out. Other types than float32 and
    bfloat16, and processors of ARM, are not tried: there some layouts have been wrong (oneDNN's
    pull request 2751).
    """
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # PyTorch's
    tried = available and platform.machine().lower() in _MACHINES
    if not tried or not hasattr(_ONEDNN, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(_ONEDNN._is_mkldnn_bf16_supported())  # noqa: SLF001  # no public one tells
    return dtype == torch.float32


def pack(module: nn.Module, rows: int) -> None:
    """Put a `PackedLinear` in the place of every linear layer below `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child, rows))
        else:
            pack(child, rows)


class Float16Weight(nn.Module):
    """A float32 linear layer whose weight is kept in float16: half the bytes, read at every step.

    Products and sums are float32. A weight loses 13 of its 24 bits, as it would on a GPU.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """`layer` can be let go of afterwards.

        Raises:
            RuntimeError: this PyTorch, or this CPU, has no FBGEMM.
        """
        super().__init__()
        weight, bias = layer.weight.detach(), layer.bias.detach()
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 `[…, inputs]` to the same `[…, outputs]`."""
        out: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self._packed)
        return out


class PackedLinear(nn.Module):
    """A linear layer as oneDNN likes it; GELU (erf) and the sum with a stream are fused into it."""

    def __init__(self, layer: nn.Linear, rows: int) -> None:
        """`layer` can be let go of afterwards; `rows` of input are expected at a time."""
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        # A plain attribute: its layout is opaque, and not to be saved or moved.
        weight = layer.weight.detach()
        self._weight = _ONEDNN._reorder_linear_weight(weight, rows)  # noqa: SLF001  # as above
        self._bias = layer.bias.detach()
        self._activation = "gelu" if isinstance(layer, GeluLinear) else "none"

    def forward(self, x: Tensor, stream: Tensor | None = None) -> Tensor:
        """`[…, inputs]` to `[…, outputs]`, added to `stream` of that shape where there is one."""
        run = _ONEDNN._linear_pointwise  # noqa: SLF001  # as above
        layer = (self._weight, self._bias)
        out: Tensor
        if stream is None:
            out = run(x, *layer, self._activation, [], "none")
        else:
            out = run.binary(x, stream, *layer, "add")
        return out

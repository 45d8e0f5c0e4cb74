"""The one place where speed is switched on; without it the model runs as blip.py is written.

On CPUs, in bfloat16: oneDNN's own linear layers, with weights laid out as its kernels read them and
GELU applied while the product is still in the cache; and attention for few queries. On everything
else, nothing: float32 and float64 are there to be exact.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from captioner.inference.blip import Blip, GeluLinear, TextLayer
from captioner.inference.cuda_graphs import GraphRunner
from captioner.inference.decoding import EagerRunner, Runner

#: oneDNN asks for how many rows a weight is laid out; other numbers work, too.
_ROWS_OF_IMAGES = 577 * 8
_ROWS_OF_TOKENS = 8


def accelerate(model: Blip) -> Runner:
    """Prepare a loaded model for its device and type, and say what is to run its decoder."""
    weight = model.vision.patches.weight
    if weight.device.type == "cpu":
        torch.set_num_threads(max(1, min(torch.get_num_threads(), available_cores())))
        if weight.dtype == torch.bfloat16 and _onednn_has_linear():
            _pack(model.vision, _ROWS_OF_IMAGES)
            _pack(model.text, _ROWS_OF_TOKENS)
            for layer in cast(Iterable[TextLayer], model.text.layers):
                layer.attend_image = attend_few
    if weight.device.type == "cuda":
        return GraphRunner(model.text)
    return EagerRunner(model.text)


def attend_few(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of a few queries to many keys, as two products.

    PyTorch's own kernel for CPUs is made for many queries; for one to five of them, to the 577
    states of an image, this is 3 to 5 times as fast.

    Args:
        query: `[B, H, Q, D]`.
        key: `[B, H, N, D]`.
        value: like the keys.
    """
    scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    seen: Tensor = scores.softmax(-1).to(value.dtype) @ value
    return seen


def _onednn_has_linear() -> bool:
    """True where this PyTorch has the operators, which are those its compiler uses."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _pack(module: nn.Module, rows: int) -> None:
    """Put a `PackedLinear` in the place of every linear layer below `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child, rows))
        else:
            _pack(child, rows)


class PackedLinear(nn.Module):
    """A linear layer as oneDNN likes it, with GELU (erf) where `layer` has it."""

    def __init__(self, layer: nn.Linear, rows: int) -> None:
        """`layer` can be let go of afterwards; `rows` of input are expected at a time."""
        super().__init__()
        operators: Any = torch.ops.mkldnn
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._run = operators._linear_pointwise  # noqa: SLF001 - there is no public name
        # A plain attribute: its layout is opaque, and not to be saved or moved.
        self._weight = operators._reorder_linear_weight(layer.weight.detach(), rows)  # noqa: SLF001
        self._bias = layer.bias.detach()
        self._activation = "gelu" if isinstance(layer, GeluLinear) else "none"

    def forward(self, x: Tensor) -> Tensor:
        """`[…, inputs]` to `[…, outputs]`."""
        out: Tensor = self._run(x, self._weight, self._bias, self._activation, [], "none")
        return out


def available_cores() -> int:
    """Cores this process may really use: its affinity, and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        limit = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or `max`: no limit
        return cores or 1
    return max(1, min(cores or 1, limit))

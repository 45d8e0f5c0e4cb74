"""The one place where speed is switched on; without it the model runs as blip.py is written.

On CPUs, freed memory is kept, and in bfloat16 there are oneDNN's own linear layers, with weights
laid out as its kernels read them, GELU and residual sums applied while the product is still in the
cache, and attention for few queries. On CUDA the decoder's steps, and the encoder for few images,
are recorded and replayed, and in half types some layers have kernels of ours. In half types the
encoder's attention is the kernel that a short measurement finds fastest.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from captioner.errors import describe
from captioner.inference.attention import attend_few_tokens, fastest_attention
from captioner.inference.blip import Blip, GeluLinear, TextLayer, VisionLayer
from captioner.inference.cuda_graphs import GraphRunner
from captioner.inference.fused_layers import WidenedLinear, fuse
from captioner.inference.kernels import CudaKernels
from captioner.inference.runners import EagerRunner, Runner
from captioner.inference.unprojected import FewQueries, UnprojectedRunner

_logger = logging.getLogger(__name__)

_HALF = (torch.float16, torch.bfloat16)
#: Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30
#: Its greatest threshold of its own choice (DEFAULT_MMAP_THRESHOLD_MAX); it trims at twice that.
_GLIBC_MMAP_BYTES = 32 * 2**20

#: Private to PyTorch, as its compiler uses them: there are no public names.
_ONEDNN: Any = torch.ops.mkldnn
#: oneDNN asks for how many rows a weight is laid out; other numbers work, too.
_ROWS_OF_IMAGES = 577 * 8
_ROWS_OF_TOKENS = 8
#: Attention kernels are compared on so many images.
_IMAGES_TIMED = 8


def accelerate(model: Blip) -> Runner:
    """Prepare a loaded model for its device and type, and say what is to run it.

    Raises:
        torch.OutOfMemoryError: the device is full.
    """
    weight = model.vision.patches.weight
    runner: Runner = EagerRunner(model)
    if weight.device.type == "cpu":
        torch.set_num_threads(max(1, min(torch.get_num_threads(), available_cores())))
        keep_freed_memory()
        if weight.dtype == torch.bfloat16 and _onednn_has_bfloat16():
            for layer in cast(Iterable[TextLayer], model.text.layers):
                layer.attend_image = FewQueries(layer)
                layer.attend_tokens = attend_few_tokens
            _keep_vocabulary_in_float16(model)
            _pack(model.vision, _ROWS_OF_IMAGES)
            _pack(model.text, _ROWS_OF_TOKENS)
            runner = UnprojectedRunner(model)
    if weight.dtype in _HALF:
        _choose_attention(model)
    if weight.device.type == "cuda":
        if weight.dtype in _HALF:
            _use_own_kernels(model)
        return GraphRunner(model)
    return runner


def _use_own_kernels(model: Blip) -> None:
    """On CUDA, in a half type: layers with kernels of ours, where those can be had.

    Raises:
        torch.OutOfMemoryError: the device is full.
    """
    words = model.text.words.weight.detach()
    # The sums stay float32, which is what breaks ties; the weight is rounded like all others.
    vocabulary = WidenedLinear(words, model.text.vocabulary.bias.detach())
    try:
        vocabulary(words[:1])
        model.text.vocabulary = vocabulary  # type: ignore[assignment]  # called alike
        model.text.head_dtype = words.dtype
        fuse(model, CudaKernels(words.device, words.dtype))
    except torch.OutOfMemoryError:  # which may be over the next time
        raise
    except (ImportError, RuntimeError, TypeError) as error:
        _logger.warning("running with PyTorch's kernels alone, slower: %s", describe(error))


def _keep_vocabulary_in_float16(model: Blip) -> None:
    """Read half the bytes from words to logits, where there is FBGEMM."""
    try:
        vocabulary = Float16Weight(model.text.vocabulary)
    except (AttributeError, RuntimeError):  # another build of PyTorch: it stays in float32
        return
    model.text.vocabulary = vocabulary  # type: ignore[assignment]  # called alike


def keep_freed_memory(*, keep: bool = True) -> None:
    """Have glibc keep what is freed for the next layer, instead of giving it back to the kernel.

    By default everything above 32 MiB is mapped afresh each time, and cleared page by page: a batch
    of 8 images cost 280,000 page faults, and 2.4 s instead of 2.0 s on two cores. It works for the
    whole process.

    Args:
        keep: False is what glibc arrives at by itself in a process that frees large blocks.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES if keep else _GLIBC_MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES if keep else 2 * _GLIBC_MMAP_BYTES)


def _choose_attention(model: Blip) -> None:
    """Give the encoder's layers the kernel that is fastest here."""
    layers = cast(Sequence[VisionLayer], model.vision.layers)
    positions, heads = model.vision.positions, layers[0].heads
    states, width = positions.shape
    shape = (_IMAGES_TIMED, heads, states, width // heads)
    chosen = fastest_attention(shape, positions.device, positions.dtype)
    for layer in layers:
        layer.attend = chosen


def _onednn_has_bfloat16() -> bool:
    """True where this PyTorch has the operators, as its compiler uses them, and this CPU runs them.

    Without AVX-512 a weight of bfloat16 cannot even be laid out.
    """
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return (
        bool(available)
        and hasattr(_ONEDNN, "_linear_pointwise")
        and bool(_ONEDNN._is_mkldnn_bf16_supported())  # noqa: SLF001  # no public one tells
    )


def _pack(module: nn.Module, rows: int) -> None:
    """Put a `PackedLinear` in the place of every linear layer below `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child, rows))
        else:
            _pack(child, rows)


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
        self._weight = _ONEDNN._reorder_linear_weight(layer.weight.detach(), rows)  # noqa: SLF001
        self._bias = layer.bias.detach()
        self._activation = "gelu" if isinstance(layer, GeluLinear) else "none"

    def forward(self, x: Tensor, stream: Tensor | None = None) -> Tensor:
        """`[…, inputs]` to `[…, outputs]`, added to `stream` of that shape where there is one."""
        run, layer = _ONEDNN._linear_pointwise, (self._weight, self._bias)  # noqa: SLF001
        out: Tensor
        if stream is None:
            out = run(x, *layer, self._activation, [], "none")
        else:
            out = run.binary(x, stream, *layer, "add")
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

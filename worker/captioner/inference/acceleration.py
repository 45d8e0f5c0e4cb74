"""The one place where speed is switched on; without it the model runs as blip.py is written.

On CPUs freed memory is kept. In bfloat16 and float32 there are oneDNN's own linear layers, with
weights laid out as its kernels read them, GELU and residual sums applied while the product is still
in the cache (in float32 for the decoder alone), and image states are not projected for many images;
in bfloat16 there is attention for few queries, too. On CUDA the decoder's steps, and the encoder
for few images, are recorded and replayed, and in half types some layers have kernels of ours. In
half types the encoder's attention is the kernel that a short measurement finds fastest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import cast

import torch

from captioner.cores import available_cores
from captioner.errors import describe
from captioner.inference.attention import attend_few, attend_few_tokens, fastest_attention
from captioner.inference.blip import Blip, TextLayer, VisionLayer
from captioner.inference.cuda_graphs import GraphRunner
from captioner.inference.freed_memory import keep_freed_memory
from captioner.inference.fused_layers import WidenedLinear, fuse
from captioner.inference.kernels import CudaKernels
from captioner.inference.packed_layers import Float16Weight, onednn_runs, pack
from captioner.inference.runners import EagerRunner, Runner
from captioner.inference.unprojected import FewQueries, UnprojectedRunner

_logger = logging.getLogger(__name__)

_HALF = (torch.float16, torch.bfloat16)
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
        if onednn_runs(weight.dtype):
            _use_packed_layers(model, half=weight.dtype in _HALF)
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
    words = model.text.token_embedding.weight.detach()
    # The sums stay float32, which is what breaks ties; the weight is rounded like all others.
    lm_head = WidenedLinear(words, model.text.lm_head.bias.detach())
    try:
        lm_head(words[:1])
        model.text.lm_head = lm_head  # type: ignore[assignment]  # called alike
        model.text.lm_head_dtype = words.dtype
        fuse(model, CudaKernels(words.device, words.dtype))
    except torch.OutOfMemoryError:  # which may be over the next time
        raise
    except (ImportError, RuntimeError, TypeError) as error:
        _logger.warning("running with PyTorch's kernels alone, slower: %s", describe(error))


def _use_packed_layers(model: Blip, *, half: bool) -> None:
    """On CPUs: oneDNN's layers, and image states that need not be projected.

    In float32 PyTorch's own kernels, of MKL, are as fast for many rows, and so is its attention.
    """
    for layer in cast(Iterable[TextLayer], model.text.layers):
        layer.attend_image = FewQueries(layer, attend_few if half else layer.attend_image)
        if half:
            layer.attend_tokens = attend_few_tokens
    if half:
        _keep_lm_head_in_float16(model)
        pack(model.vision, _ROWS_OF_IMAGES)
    pack(model.text, _ROWS_OF_TOKENS)


def _keep_lm_head_in_float16(model: Blip) -> None:
    """Read half the bytes from words to logits, where there is FBGEMM."""
    try:
        lm_head = Float16Weight(model.text.lm_head)
    except (AttributeError, RuntimeError):  # another build of PyTorch: it stays in float32
        return
    model.text.lm_head = lm_head  # type: ignore[assignment]  # called alike


def _choose_attention(model: Blip) -> None:
    """Give the encoder's layers the kernel that is fastest here."""
    layers = cast(Sequence[VisionLayer], model.vision.layers)
    positions, heads = model.vision.positions, layers[0].heads
    states, width = positions.shape
    shape = (_IMAGES_TIMED, heads, states, width // heads)
    chosen = fastest_attention(shape, positions.device, positions.dtype)
    for layer in layers:
        layer.attend = chosen

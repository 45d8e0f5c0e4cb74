"""The least time that the image encoder could take: its linear layers and its attention.

Everything else (normalisation, GELU, sums, moving data) counts as nothing. Each layer is measured
at the model's own shape with every kernel that is at hand, and the fastest counts, so the floor is
what this machine does, not what its maker promises. A second, lower floor takes the products bare:
without their biases, and into memory that is there already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from captioner.inference.architecture import VisionArchitecture
from captioner.inference.attention import fastest_attention
from captioner.inference.benchmark.machine import timed
from captioner.inference.benchmark.sides import Ours
from captioner.inference.blip import Attention

#: Rows, inputs and outputs of a matrix product.
Shape = tuple[int, int, int]
#: One way to compute something; what it returns is of no interest.
Kernel = Callable[[], object]


def measure_encoder(
    ours: Ours,
    vision: VisionArchitecture,
    pixels: Sequence[NDArray[np.uint8]],
    place: tuple[torch.device, torch.dtype],
    rounds: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Time the encoder and, in alternation with it, the pieces of its floor.

    Args:
        ours: the model.
        vision: its encoder's shape.
        pixels: of a batch, uint8 `[side, side, 3]`.
        place: device and type.
        rounds: of which the median counts.
        say: told before each round.

    Returns:
        Seconds per batch, and what they are made of.
    """
    device, dtype = place
    with torch.inference_mode():
        shapes = _shapes(vision, len(pixels))
        products = [_products(shape, count, device, dtype) for shape, count in shapes.items()]
        attention = list(_attention(vision, len(pixels), device, dtype))
        whole: list[Kernel] = [lambda: ours.encode(pixels)]
        layers = [with_bias for with_bias, _ in products]
        bare = [with_bias + without for with_bias, without in products]
        everything = [*bare, attention, whole]
        times: list[list[list[float]]] = [[[] for _ in piece] for piece in everything]
        for number in range(rounds + 1):
            say(f"encoder and its floor, batch {len(pixels)}")
            for piece, spent in zip(everything, times, strict=True):
                for kernel, took in zip(piece, spent, strict=True):
                    seconds, _ = timed(device, kernel)
                    if number:  # the first is warm-up
                        took.append(seconds)
    *product_times, attention_times, encoder_times = times
    layer_seconds = sum(
        _best(spent[: len(layer)]) for layer, spent in zip(layers, product_times, strict=True)
    )
    product_seconds = sum(map(_best, product_times))
    attention_seconds, encoder_seconds = _best(attention_times), _best(encoder_times)
    flops = sum(
        2 * rows * inputs * outputs * count for (rows, inputs, outputs), count in shapes.items()
    )
    floor, bare_floor = layer_seconds + attention_seconds, product_seconds + attention_seconds
    return {
        "batch": len(pixels),
        "seconds": encoder_seconds,
        "floor_seconds": floor,
        "share": floor / encoder_seconds,
        "bare_floor_seconds": bare_floor,
        "bare_share": bare_floor / encoder_seconds,
        "product_tflops_per_second": flops / product_seconds / 1e12,
        "attention_seconds": attention_seconds,
    }


def _best(times: Sequence[Sequence[float]]) -> float:
    """The median of the kernel whose median is least."""
    return min(median(took) for took in times)


def _shapes(vision: VisionArchitecture, images: int) -> Counter[Shape]:
    """The matrix products of one batch, and how many there are of each."""
    width, inner, layers = vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers
    patches, rows = images * (vision.positions - 1), images * vision.positions
    shapes: Counter[Shape] = Counter()
    shapes[patches, 3 * vision.patch_size**2, width] += 1
    for inputs, outputs in ((width, 3 * width), (width, width), (width, inner), (inner, width)):
        shapes[rows, inputs, outputs] += layers
    return shapes


def _products(
    shape: Shape, count: int, device: torch.device, dtype: torch.dtype
) -> tuple[list[Kernel], list[Kernel]]:
    """Ways to compute `count` linear layers of one shape, and ways to compute bare products.

    Each has a weight of its own, as each layer has: a single one would stay in the cache.
    """
    rows, inputs, outputs = shape
    x = torch.randn(rows, inputs, device=device, dtype=dtype)
    weights = [torch.randn(outputs, inputs, device=device, dtype=dtype) for _ in range(count)]
    bias = torch.randn(outputs, device=device, dtype=dtype)
    with_bias = [_for_each(weights, lambda weight: functional.linear(x, weight, bias))]
    if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        packed = _packed(x, weights, bias)
        if packed is not None:
            with_bias.append(packed)
    there = x.new_empty(rows, outputs)
    bare = [
        _for_each(weights, lambda weight: x @ weight.t()),
        _for_each(weights, lambda weight: torch.mm(x, weight.t(), out=there)),
    ]
    return with_bias, bare


def _packed(x: Tensor, weights: Sequence[Tensor], bias: Tensor) -> Kernel | None:
    """Products of oneDNN with weights laid out for it beforehand; None where there is none."""
    onednn: Any = torch.ops.mkldnn  # private to PyTorch: what is there depends on the build

    def product(laid_out: Tensor) -> object:
        return onednn._linear_pointwise(x, laid_out, bias, "none", [], "")  # noqa: SLF001

    try:
        laid_out = [onednn._reorder_linear_weight(one, len(x)) for one in weights]  # noqa: SLF001
        product(laid_out[0])
    except (AttributeError, RuntimeError):
        return None
    return _for_each(laid_out, product)


def _attention(
    vision: VisionArchitecture, images: int, device: torch.device, dtype: torch.dtype
) -> Iterator[Kernel]:
    """Ways to compute the attention of all layers: two kernels, in two layouts of memory."""
    heads = vision.num_attention_heads
    shape = (images, heads, vision.positions, vision.hidden_size // heads)
    joined = torch.randn(images, vision.positions, 3, *shape[1::2], device=device, dtype=dtype)
    joined = joined.permute(2, 0, 3, 1, 4)
    default: Attention = functional.scaled_dot_product_attention
    for query, key, value in (joined, joined.contiguous()):
        for kernel in {default, fastest_attention(shape, device, dtype)}:
            yield _repeated(vision.num_hidden_layers, partial(kernel, query, key, value))


def _for_each(weights: Sequence[Tensor], product: Callable[[Tensor], object]) -> Kernel:
    def run() -> None:
        for weight in weights:
            product(weight)

    return run


def _repeated(count: int, work: Kernel) -> Kernel:
    def run() -> None:
        for _ in range(count):
            work()

    return run

"""Where a model runs, in which floating-point type, and what errors of that device mean."""

from __future__ import annotations

import logging
import re
import time
from functools import cache

import torch

from captioner.errors import DeviceLostError, ErrorCode, JobError, ModelLoadError, describe

_logger = logging.getLogger(__name__)

#: What the CPU's allocator, oneDNN, CUDA and its library for products say, without a type of its
#: own; oneDNN does not say why, and memory is what it lacks.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "could not create a primitive",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
#: An image's states times weights, as many of these as there are states.
_PRODUCT_ROWS, _PRODUCT_WIDTH = 577, 1024
_PRODUCT_RUNS = 8
_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def resolve_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` stands for here.

    Raises:
        ModelLoadError: the name is another, or there is no such CUDA device.
    """
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is None:
        raise ModelLoadError(
            f"device must be auto, cpu, cuda or cuda:N (CAPTIONER_MODEL__DEVICE), not {name!r}"
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        raise ModelLoadError(
            f"device {name!r} asked for, but PyTorch {torch.__version__} sees {count} CUDA "
            "devices; set CAPTIONER_MODEL__DEVICE=cpu, or install PyTorch for CUDA and its driver"
        )
    return torch.device("cuda", index)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type that `auto` or a type's name stands for on a device; slow ones are warned of.

    Raises:
        ModelLoadError: there is no such type.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32
    if name not in _DTYPES:
        raise ModelLoadError(
            f"dtype must be auto or one of {', '.join(_DTYPES)} (CAPTIONER_MODEL__DTYPE), "
            f"not {name!r}"
        )
    slow = name == "float16" or (name == "bfloat16" and not cpu_multiplies_bfloat16())
    if device.type == "cpu" and slow:
        _logger.warning(
            "this CPU is slower in %s than in float32; auto (CAPTIONER_MODEL__DTYPE) takes the "
            "type that it is made for",
            name,
        )
    return _DTYPES[name]


def device_error(error: RuntimeError, device: torch.device) -> JobError | DeviceLostError | None:
    """What an error means, if it is one of the device: that it is full, or lost to this process."""
    if isinstance(error, torch.OutOfMemoryError) or any(
        said in str(error) for said in _OUT_OF_MEMORY
    ):
        return JobError(ErrorCode.OUT_OF_MEMORY, f"{device} is full: {describe(error)}")
    if isinstance(error, torch.AcceleratorError):
        return DeviceLostError(f"{device} cannot go on: {describe(error)}")
    return None


def dtype_name(dtype: torch.dtype) -> str:
    """`float16` for `torch.float16`."""
    return str(dtype).removeprefix("torch.")


@cache
def cpu_multiplies_bfloat16() -> bool:
    """True where this CPU multiplies bfloat16 faster than float32; asked once, it takes moments.

    Only CPUs with AMX or AVX512-BF16 can, and those are measured: AVX512-BF16 is twice as fast as
    float32 on AMD's, and half as fast on Intel's that have AMX, which virtual machines often hide.
    """
    # `torch.ops.mkldnn._is_mkldnn_bf16_supported()` does not tell: it is true of every AVX-512.
    # Older PyTorch does not have this question: float32 is right everywhere.
    capabilities = getattr(torch.cpu, "get_capabilities", dict[str, bool])()
    if not (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")):
        return False
    seconds = product_seconds(torch.bfloat16, torch.float32)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def product_seconds(*dtypes: torch.dtype) -> dict[torch.dtype, float]:
    """How long a product of BLIP-large's encoder takes on one core of this CPU, in each type.

    The least of several runs, in alternation: what other programs take of a core only adds.
    """
    factors = {dtype: torch.ones(_PRODUCT_ROWS, _PRODUCT_WIDTH, dtype=dtype) for dtype in dtypes}
    least = dict.fromkeys(dtypes, float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(_PRODUCT_RUNS):
            for dtype, rows in factors.items():
                start = time.perf_counter()
                torch.nn.functional.linear(rows, rows)
                least[dtype] = min(least[dtype], time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return least

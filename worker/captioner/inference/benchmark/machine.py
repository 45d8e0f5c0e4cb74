"""What a measurement was made on and with: without it a number says nothing."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, TypeVar

import torch

from captioner.cores import available_cores

_Result = TypeVar("_Result")

#: What PyTorch calls the instructions that decide how fast a CPU multiplies.
_DECISIVE = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_f", "avx2")


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """The machine as PyTorch sees it; memory in bytes."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict[str, Any])()
    cuda = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "device": str(device),
        "cpu": str(capabilities.get("cpu_name") or platform.processor() or platform.machine()),
        "cpu_instructions": [name for name in _DECISIVE if capabilities.get(name)],
        # Not the machine's: those that this process gets.
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "gpu": cuda.name if cuda else None,
        "gpu_memory_bytes": cuda.total_memory if cuda else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def describe_versions() -> dict[str, str | None]:
    """Of everything that a time depends on."""
    return {
        "captioner": version("captioner"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "cuda": torch.version.cuda,
    }


def timed(device: torch.device, work: Callable[[], _Result]) -> tuple[float, _Result]:
    """Seconds that some work took on the device, to its very end, and its result."""
    _wait_for(device)
    start = time.perf_counter()
    result = work()
    _wait_for(device)
    return time.perf_counter() - start, result


def _wait_for(device: torch.device) -> None:
    """CUDA works on after a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

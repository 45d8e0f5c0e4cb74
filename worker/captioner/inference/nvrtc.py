"""CUDA sources compiled for the device at hand, and launched.

What does so, NVIDIA's `cuda-bindings` and NVRTC, comes with PyTorch's builds for CUDA from 2.10 on;
no compiler need be installed. A kernel takes 20 ms to compile (an H200's processor).
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

#: Tensors are passed as pointers, None as a null pointer, whole numbers as `long long`, others as
#: `float`.
Argument = Tensor | float | None
#: How many blocks, of how many threads, with how many bytes of shared memory.
Blocks = tuple[int, int, int]


def require_nvrtc() -> None:
    """See that there is what compiles and launches.

    Raises:
        ImportError: there is not, as in PyTorch's builds for CPUs.
    """
    import_module("cuda.bindings.nvrtc")


def launch(
    name: str,
    defines: tuple[str, ...],
    device: torch.device,
    blocks: Blocks,
    arguments: tuple[Argument, ...],
) -> None:
    """Queue a kernel of kernels.cu on the device's current stream; compile it the first time.

    Raises:
        RuntimeError: it cannot be compiled.
        torch.OutOfMemoryError: there is no room for it.
        torch.AcceleratorError: the device refuses.
    """
    driver = import_module("cuda.bindings.driver")
    with torch.cuda.device(device):
        kernel = _kernel(name, defines, str(device))
        stream = torch.cuda.current_stream().cuda_stream
        count, threads, shared_bytes = blocks
        shape = (count, 1, 1, threads, 1, 1, shared_bytes, stream)
        parameters = tuple(zip(*map(parameter, arguments), strict=True))
        _check(driver.cuLaunchKernel(kernel, *shape, parameters, 0))


def parameter(argument: Argument) -> tuple[Any, Any]:
    """A value and its type, as they are passed to a kernel."""
    if isinstance(argument, Tensor):
        return argument.data_ptr(), ctypes.c_void_p
    if argument is None:
        return 0, ctypes.c_void_p
    return argument, ctypes.c_longlong if isinstance(argument, int) else ctypes.c_float


@cache
def _kernel(name: str, defines: tuple[str, ...], device: str) -> Any:
    driver = import_module("cuda.bindings.driver")
    return _check(driver.cuModuleGetFunction(_module(defines, device), name.encode()))


@cache
def _module(defines: tuple[str, ...], device: str) -> Any:
    """What kernels.cu has with these definitions, on the current device, which `device` names."""
    driver = import_module("cuda.bindings.driver")
    major, minor = torch.cuda.get_device_capability(device)
    return _check(driver.cuModuleLoadData(compile_kernels(defines, f"sm_{major}{minor}")))


def compile_kernels(defines: tuple[str, ...], architecture: str) -> bytes:
    """Machine code for what kernels.cu has with these definitions; needs no device.

    Raises:
        RuntimeError: there is no NVRTC, or it refuses.
    """
    nvrtc = import_module("cuda.bindings.nvrtc")
    source = files("captioner.inference").joinpath("kernels.cu").read_bytes()
    program = _check(nvrtc.nvrtcCreateProgram(source, b"kernels.cu", 0, [], []))
    options = [f"--gpu-architecture={architecture}".encode(), *(one.encode() for one in defines)]
    if int(nvrtc.nvrtcCompileProgram(program, len(options), options)[0]):
        log = bytearray(_check(nvrtc.nvrtcGetProgramLogSize(program)))
        _check(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"kernels.cu does not compile: {log.decode().strip()}")
    code = bytearray(_check(nvrtc.nvrtcGetCUBINSize(program)))
    _check(nvrtc.nvrtcGetCUBIN(program, code))
    _check(nvrtc.nvrtcDestroyProgram(program))
    return bytes(code)


def _check(result: tuple[Any, ...]) -> Any:
    """What a call of `cuda-bindings` gives beside its status.

    Raises:
        torch.OutOfMemoryError: the device is full.
        torch.AcceleratorError: anything else, as PyTorch raises it, and with its words.
    """
    status, *rest = result
    if not int(status):
        return rest[0] if rest else None
    driver = import_module("cuda.bindings.driver")
    said = status.name
    if isinstance(status, driver.CUresult):
        said = driver.cuGetErrorString(status)[1].decode()
        if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise torch.OutOfMemoryError(f"CUDA error: {said}")
    raise torch.AcceleratorError(f"CUDA error: {said}")

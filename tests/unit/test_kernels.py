"""kernels.cu without a GPU: it compiles for every device, and computes what it must on the CPU."""

from __future__ import annotations

import ctypes
import itertools
import math
import sys
from contextlib import nullcontext
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from captioner.errors import DeviceLostError, JobError
from captioner.inference import nvrtc
from captioner.inference.devices import device_error
from captioner.inference.kernels import CudaKernels, suits_attention, suits_norm
from captioner.inference.nvrtc import compile_kernels, parameter
from kernel_cases import *  # noqa: F403  (the tests, and what they need)
from kernel_cases import HALF, Make
from kernels_on_cpu import COMPILER, KernelsOnCpu

#: From the oldest that NVRTC 13 knows: T4, A100, L4, H100, B200, RTX 50.
ARCHITECTURES = ["sm_75", "sm_80", "sm_89", "sm_90", "sm_100", "sm_120"]
needs_nvrtc = pytest.mark.skipif(
    sys.platform != "linux", reason="NVRTC is installed for tests on Linux alone"
)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu")


@pytest.fixture
def make(device: torch.device) -> Make:
    if COMPILER is None:
        pytest.skip("no g++ to run kernels.cu on the CPU with")
    return lambda dtype: KernelsOnCpu(device, dtype)


@needs_nvrtc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("defines", [("-DWIDTH=1024",), ("-DQUERIES=3", "-DSIZE=64")])
def test_they_compile_for_every_device(architecture: str, defines: tuple[str, ...]) -> None:
    assert compile_kernels(defines, architecture).startswith(b"\x7fELF")
    if architecture != "sm_75":  # which has no bfloat16
        code = compile_kernels((*defines, "-DBFLOAT16"), architecture)
        assert code.startswith(b"\x7fELF")


@needs_nvrtc
@pytest.mark.parametrize(
    "defines",
    [
        *(("-DBFLOAT16", f"-DWIDTH={width}") for width in (8, 48, 768, 8192)),
        *(
            ("-DBFLOAT16", f"-DQUERIES={queries}", f"-DSIZE={size}")
            for queries, size in itertools.product((1, 8), (8, 64, 256))
        ),
    ],
)
def test_they_compile_for_every_shape(defines: tuple[str, ...]) -> None:
    assert compile_kernels(defines, "sm_90").startswith(b"\x7fELF")


@needs_nvrtc
def test_what_does_not_compile_says_where() -> None:
    with pytest.raises(RuntimeError, match=r"kernels\.cu does not compile: .*\(\d+\): error: "):
        compile_kernels(("-DQUERIES=several", "-DSIZE=64"), "sm_90")


@pytest.mark.parametrize(
    ("width", "suits"), [(8, True), (768, True), (8192, True), (12, False), (8200, False)]
)
def test_rows_that_can_be_normalised(width: int, suits: bool) -> None:
    assert suits_norm(width) is suits


@pytest.mark.parametrize(
    ("queries", "states", "size", "suits"),
    [
        (1, 577, 64, True),
        (5, 577, 64, True),
        (8, 1535, 64, True),
        (3, 4093, 64, True),
        (8, 1536, 64, False),  # 48 KiB of scores, and no room for their sums
        (3, 4094, 64, False),
        (9, 577, 64, False),
        (3, 577, 12, False),
        (3, 577, 24, False),  # three lanes do not add up to a warp
        (3, 577, 512, False),
    ],
)
def test_attention_that_fits(queries: int, states: int, size: int, suits: bool) -> None:
    assert suits_attention(queries, states, size) is suits


def test_arguments_have_the_types_of_the_kernels() -> None:
    tensor = torch.zeros(3)
    assert parameter(tensor) == (tensor.data_ptr(), ctypes.c_void_p)
    assert parameter(None) == (0, ctypes.c_void_p)
    assert parameter(7) == (7, ctypes.c_longlong)
    assert parameter(0.5) == (0.5, ctypes.c_float)


class Driver:
    """NVIDIA's driver, as far as a launch sees it."""

    CUresult = type("CUresult", (int,), {"name": "CUDA_ERROR", "CUDA_ERROR_OUT_OF_MEMORY": 2})

    def __init__(self, status: int = 0) -> None:
        self.status, self.launched = self.CUresult(status), list[tuple[Any, ...]]()
        self.loaded = 0

    def cuModuleLoadData(self, code: bytes) -> tuple[int, str]:  # noqa: N802  (NVIDIA's name)
        assert code.startswith(b"\x7fELF")
        self.loaded += 1
        return 0, "module"

    def cuModuleGetFunction(self, module: str, name: bytes) -> tuple[int, str]:  # noqa: N802  (NVIDIA's name)
        assert module == "module"
        return 0, name.decode()

    def cuLaunchKernel(self, *given: Any) -> tuple[int]:  # noqa: N802  (NVIDIA's name)
        self.launched.append(given)
        return (self.status,)

    def cuGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802  (NVIDIA's name)
        return 0, {2: b"out of memory", 700: b"an illegal memory access was encountered"}[status]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """In the place of NVIDIA's, and of the device."""
    stand_in = Driver()

    def find(name: str) -> Any:
        return stand_in if name == "cuda.bindings.driver" else import_module(name)

    monkeypatch.setattr(nvrtc, "import_module", find)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    nvrtc._kernel.cache_clear()
    nvrtc._module.cache_clear()
    return stand_in


@needs_nvrtc
def test_a_launch_compiles_once_and_says_what_is_where(driver: Driver) -> None:
    kernels = CudaKernels(torch.device("cuda", 1), torch.bfloat16)
    query = torch.zeros(2, 3, 4, 64, dtype=torch.bfloat16).transpose(1, 2)
    keys, values = torch.zeros(2, 2, 4, 577, 64, dtype=torch.bfloat16).unbind(0)
    outs = [kernels.attend_image(query, keys, values) for _ in range(2)]
    assert driver.loaded == 1
    kernel, *shape, (given, types), extra = driver.launched[1]
    assert (kernel, extra) == ("attend_image", 0)
    # Blocks, threads, shared bytes, stream.
    assert shape == [2 * 4, 1, 1, 256, 1, 1, 4 * 3 * 577, 77]
    assert given[:4] == (query.data_ptr(), keys.data_ptr(), values.data_ptr(), outs[1].data_ptr())
    assert given[4:9] == (4, 577, 4 * 577 * 8, 577 * 8, 8)
    assert given[9] == pytest.approx(math.log2(math.e) / 8)
    pointer, whole = ctypes.c_void_p, ctypes.c_longlong
    assert types == (*[pointer] * 4, *[whole] * 5, ctypes.c_float)


@needs_nvrtc
@pytest.mark.parametrize(
    ("status", "said"), [(2, "out of memory"), (700, "an illegal memory access was encountered")]
)
def test_what_the_driver_refuses_is_an_error_of_the_device(
    driver: Driver, status: int, said: str
) -> None:
    driver.status = Driver.CUresult(status)
    kernels, x = CudaKernels(torch.device("cuda", 0), HALF), torch.zeros(3, 64, dtype=HALF)
    kind = torch.OutOfMemoryError if status == 2 else torch.AcceleratorError
    with pytest.raises(kind, match=f"^CUDA error: {said}$") as caught:
        kernels.add_norm(x, None, x[0], x[0], 1e-5, None)
    meant = device_error(caught.value, torch.device("cuda", 0))
    assert isinstance(meant, JobError if status == 2 else DeviceLostError)

"""kernels.cu without a GPU: it compiles for every device, and computes what it must on the CPU."""

from __future__ import annotations

import ctypes
import itertools
import sys

import pytest
import torch

from captioner.inference import kernels
from captioner.inference.kernels import compile_kernels, suits_attention, suits_norm
from kernel_cases import *  # noqa: F403  (the tests, and what they need)
from kernel_cases import Make
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
        (8, 1536, 64, True),
        (3, 4096, 64, True),
        (8, 1537, 64, False),  # more than 48 KiB of scores
        (3, 4097, 64, False),
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
    assert kernels._parameter(tensor) == (tensor.data_ptr(), ctypes.c_void_p)
    assert kernels._parameter(None) == (0, ctypes.c_void_p)
    assert kernels._parameter(7) == (7, ctypes.c_longlong)
    assert kernels._parameter(0.5) == (0.5, ctypes.c_float)

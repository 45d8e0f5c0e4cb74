"""kernels.cu on the CPU: see cuda_on_cpu.cpp."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from captioner.inference import kernels, nvrtc

COMPILER = shutil.which("g++")

#: What the two instructions between half types and float32 do, in C++.
_CONVERSIONS = {
    r'float y;\s*asm\("cvt\.f32\.f16 [^\n]*': """
        _Float16 x; number low = bits; std::memcpy(&x, &low, sizeof x); float y = x;""",
    r'number y;\s*asm\("cvt\.rn\.f16\.f32 [^\n]*': """
        _Float16 half = x; number y; std::memcpy(&y, &half, sizeof y);""",
    r'number y;\s*asm\("cvt\.rn\.bf16\.f32 [^\n]*': """
        unsigned all; std::memcpy(&all, &x, sizeof all);
        number y = x != x ? 0x7fff : (all + 0x7fff + (all >> 16 & 1)) >> 16;""",
    r"extern __shared__ float scores\[\];": "",
}


class KernelsOnCpu(kernels.CudaKernels):
    """As on a device, but for the launch."""

    def _launch(
        self,
        name: str,
        defines: tuple[str, ...],
        blocks: nvrtc.Blocks,
        arguments: tuple[nvrtc.Argument, ...],
    ) -> None:
        *_, shared_bytes = blocks
        # The sums of each query lie beside what is asked for.
        assert shared_bytes + 4 * kernels.MOST_QUERIES <= 48 * 1024
        run = getattr(_library((*defines, *self._defines)), f"launch_{name}")
        values = [kind(value) for value, kind in map(nvrtc.parameter, arguments)]
        run.restype = ctypes.c_bool
        assert run(*map(ctypes.c_uint, blocks), *values), "it writes beyond its shared memory"


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="captioner-test-kernels-")


@cache
def _library(defines: tuple[str, ...]) -> Any:
    """kernels.cu with these definitions, as a library."""
    source = files("captioner.inference").joinpath("kernels.cu").read_text(encoding="utf-8")
    for assembly, instead in _CONVERSIONS.items():
        source, found = re.subn(assembly, instead, source)
        assert found, assembly
    assert "asm" not in source
    folder = Path(_folder().name)
    translated, library = folder / "kernels.inc", folder / f"{abs(hash(defines))}.so"
    translated.write_text(source, encoding="utf-8")
    assert COMPILER
    result = subprocess.run(
        [
            *(COMPILER, "-std=c++20", "-O2", "-shared", "-fPIC", "-w", "-ffp-contract=off"),
            *(f'-DKERNELS="{translated}"', *defines),
            *(str(Path(__file__).with_name("cuda_on_cpu.cpp")), "-o", str(library)),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return ctypes.CDLL(str(library))

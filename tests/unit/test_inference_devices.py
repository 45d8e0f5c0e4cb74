from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from captioner.errors import ModelLoadError
from captioner.inference import devices
from captioner.inference.devices import (
    cpu_multiplies_bfloat16,
    dtype_name,
    product_seconds,
    resolve_device,
    resolve_dtype,
)

_CPU = torch.device("cpu")


def test_auto_is_cuda_where_there_is_one() -> None:
    expected = "cuda:0" if torch.cuda.is_available() else "cpu"
    assert str(resolve_device("auto")) == expected
    assert str(resolve_device("cpu")) == "cpu"


@pytest.mark.parametrize("name", ["cuda:99", "cuda:4096"])
def test_a_cuda_device_that_is_not_there_is_one_clear_line(name: str) -> None:
    with pytest.raises(ModelLoadError, match="CAPTIONER_MODEL__DEVICE=cpu") as caught:
        resolve_device(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="sees 0 CUDA devices"):
        resolve_device("cuda")


@pytest.mark.parametrize("name", ["", "gpu", "mps", "cuda:", "cuda:-1", "CPU", "cpu:0"])
def test_other_devices_are_refused(name: str) -> None:
    with pytest.raises(ModelLoadError, match="auto, cpu, cuda or cuda:N"):
        resolve_device(name)


def test_auto_dtype_follows_the_hardware() -> None:
    assert resolve_dtype("auto", torch.device("cuda", 0)) is torch.float16
    expected = torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32
    assert resolve_dtype("auto", _CPU) is expected


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="no /proc/cpuinfo")
def test_bfloat16_is_not_chosen_where_the_kernel_says_that_the_cpu_has_none() -> None:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    assert {"avx512_bf16", "amx_bf16"} & set(flags) or not cpu_multiplies_bfloat16()


@pytest.mark.parametrize("instructions", ["avx512_bf16", "amx_bf16"])
@pytest.mark.parametrize(("bfloat16_seconds", "expected"), [(0.5, True), (2.0, False)])
def test_a_cpu_with_bfloat16_has_it_chosen_where_it_measures_faster(
    instructions: str,
    bfloat16_seconds: float,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = {torch.bfloat16: bfloat16_seconds, torch.float32: 1.0}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instructions: True})
    monkeypatch.setattr(
        devices, "product_seconds", lambda *types: {name: measured[name] for name in types}
    )
    assert cpu_multiplies_bfloat16.__wrapped__() is expected


def test_a_cpu_without_bfloat16_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    monkeypatch.setattr(devices, "product_seconds", lambda *types: pytest.fail(str(types)))
    assert cpu_multiplies_bfloat16.__wrapped__() is False


def test_products_are_measured_in_each_type_and_threads_are_left_as_they_were() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seconds = product_seconds(torch.float64, torch.float32)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    # Twice the bytes and half the numbers an instruction, on every CPU.
    assert seconds[torch.float64] > seconds[torch.float32] > 0


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_named_types_are_taken_as_named(name: str) -> None:
    assert dtype_name(resolve_dtype(name, _CPU)) == name


@pytest.mark.parametrize("multiplies", [True, False])
def test_types_that_a_cpu_is_slow_in_are_warned_of(
    multiplies: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "cpu_multiplies_bfloat16", lambda: multiplies)
    with caplog.at_level(logging.WARNING):
        for name in ("auto", "float16", "bfloat16", "float32", "float64"):
            resolve_dtype(name, _CPU)
            resolve_dtype(name, torch.device("cuda", 0))
    warned = [record.getMessage() for record in caplog.records]
    slow = ["float16"] if multiplies else ["float16", "bfloat16"]
    assert [message.partition(" slower in ")[2].split()[0] for message in warned] == slow
    assert all("CAPTIONER_MODEL__DTYPE" in message for message in warned)


@pytest.mark.parametrize("name", ["fp16", "half", "int8", ""])
def test_other_types_are_refused(name: str) -> None:
    with pytest.raises(ModelLoadError, match="CAPTIONER_MODEL__DTYPE"):
        resolve_dtype(name, _CPU)

"""The kernels of kernels.cu on a CUDA device."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from captioner.inference import load_captioner
from captioner.inference.fused_layers import (
    FusedImageAttention,
    FusedTokenAttention,
    SummingNorm,
    WidenedLinear,
)
from captioner.inference.kernels import CudaKernels
from kernel_cases import *  # noqa: F403  (the tests, and what they need)
from kernel_cases import ROUNDING, Make, numbers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture
def make(device: torch.device) -> Make:
    return lambda dtype: CudaKernels(device, dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_a_half_types_logits_are_not_rounded(device: torch.device, dtype: torch.dtype) -> None:
    weight = numbers(1000, 64, device=device, dtype=dtype, seed=1)
    x = numbers(2, 3, 64, device=device, dtype=dtype, seed=2)
    bias = numbers(1000, device=device, dtype=torch.float32, seed=3)
    found = WidenedLinear(weight, bias)(x)
    assert found.dtype == torch.float32
    expected = x.double() @ weight.double().t() + bias.double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_uses_them(dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fast: Any = load_captioner("demo", device="cuda", dtype=dtype)
    model = fast.model
    assert not caplog.records
    assert isinstance(model.vision.norm, SummingNorm)
    assert isinstance(model.text.lm_head, WidenedLinear)
    for layer in model.text.layers:
        assert isinstance(layer.attend_tokens, FusedTokenAttention)
        assert isinstance(layer.attend_image, FusedImageAttention)

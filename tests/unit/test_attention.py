"""The choice among attention kernels: whatever is chosen computes attention."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend

from captioner.inference import attention

SHAPE = (2, 3, 50, 16)
CPU = torch.device("cpu")


def qkv() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    return query, key, value


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_every_candidate_is_attention(backend: SDPBackend) -> None:
    found = attention._on(backend)(*qkv())
    assert torch.allclose(found, functional.scaled_dot_product_attention(*qkv()), atol=1e-5)


def test_few_queries_as_two_products() -> None:
    query, key, value = qkv()
    found = attention.attend_few(query[:, :, :3], key, value)
    expected = functional.scaled_dot_product_attention(query[:, :, :3], key, value)
    assert torch.allclose(found, expected, atol=1e-5)


def test_kernels_for_other_devices_are_passed_over() -> None:
    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    chosen = attention.fastest_attention(SHAPE, CPU, torch.bfloat16, backends)
    assert chosen is functional.scaled_dot_product_attention


@pytest.mark.parametrize("slow", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_the_fastest_is_chosen(slow: SDPBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default and one of two kernels are made slow: the other one must win."""
    inside: list[SDPBackend] = []
    used: list[SDPBackend] = []

    @contextmanager
    def entered(backend: SDPBackend) -> Iterator[None]:
        inside.append(backend)
        yield
        inside.pop()

    def attend(query: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        used.extend(inside)
        if inside != [other]:
            time.sleep(0.02)
        return query

    (other,) = {SDPBackend.MATH, SDPBackend.FLASH_ATTENTION} - {slow}
    monkeypatch.setattr(attention, "sdpa_kernel", entered)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", attend)
    chosen = attention.fastest_attention(
        SHAPE, CPU, torch.bfloat16, [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]
    )
    used.clear()
    chosen(*qkv())
    assert used == [other]

"""The choice among attention kernels: whatever is chosen computes attention."""

from __future__ import annotations

import time
from unittest.mock import Mock

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend

from captioner.inference import attention
from captioner.inference.blip import Attention, Tokens, attend_tokens
from captioner.inference.captions import additive

SHAPE = (2, 3, 50, 16)
CPU = torch.device("cpu")


def qkv() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    return query, key, value


@pytest.mark.parametrize("shape", [(1, 4, 16, 8), (2, 3, 50, 16), (3, 6, 33, 8)])
def test_products_of_any_shape_are_attention(shape: tuple[int, ...]) -> None:
    """Fewer heads than are taken at once, more of them, a rest; rows that fit and that do not."""
    query, key, value = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    found = attention.attend_by_products(query, key, value)
    expected = functional.scaled_dot_product_attention(query, key, value)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("candidate", attention._candidates(CPU))
@pytest.mark.parametrize("images", [1, 2])
def test_every_candidate_is_attention(candidate: Attention, images: int) -> None:
    query, key, value = (tensor[:images] for tensor in qkv())
    try:
        found = candidate(query, key, value)
    except RuntimeError:  # a kernel of another device
        assert candidate is not attention.attend_by_products
        return
    expected = functional.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(found, expected, atol=1e-5)


def test_few_queries_as_two_products() -> None:
    query, key, value = qkv()
    found = attention.attend_few(query[:, :, :3], key, value)
    expected = functional.scaled_dot_product_attention(query[:, :, :3], key, value)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("queries", [1, 3, 5, 6, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_tokens_as_two_products(
    monkeypatch: pytest.MonkeyPatch, queries: int, dtype: torch.dtype
) -> None:
    """More of them go PyTorch's way; the cache takes all."""
    pytorchs = Mock(side_effect=attend_tokens)
    monkeypatch.setattr(attention, "attend_tokens", pytorchs)
    generator = torch.Generator().manual_seed(1)
    joined = torch.randn(2, queries, 3 * 4 * 8, generator=generator).to(dtype)
    caches = torch.randn(2, 2, 4, 20, 8, generator=generator).to(dtype)
    slots = torch.randperm(20, generator=generator)[:queries]
    sees = torch.rand(2, queries, 20, generator=generator) > 0.5
    sees[..., slots[0]] = True
    nothing = torch.empty(0)
    tokens = Tokens(nothing, nothing, slots, additive(sees, dtype))
    ours, theirs = caches.clone(), caches.clone()
    found = attention.attend_few_tokens(joined, tokens, ours[0], ours[1])
    expected = attend_tokens(joined, tokens, theirs[0], theirs[1])
    assert pytorchs.called is (queries > 5)
    assert torch.equal(ours, theirs)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert torch.allclose(found, expected, atol=tolerance, rtol=tolerance)


def test_kernels_for_other_devices_are_passed_over() -> None:
    others = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    candidates = [attention._on(backend) for backend in others]
    chosen = attention.fastest_attention(SHAPE, CPU, torch.bfloat16, candidates)
    assert chosen is functional.scaled_dot_product_attention


@pytest.mark.parametrize("fast", [0, 1])
def test_the_fastest_is_chosen(fast: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*given: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return given[0]

    def quick(*given: torch.Tensor) -> torch.Tensor:
        return given[0]

    monkeypatch.setattr(functional, "scaled_dot_product_attention", slow)
    candidates = [slow, slow]
    candidates[fast] = quick
    assert attention.fastest_attention(SHAPE, CPU, torch.bfloat16, candidates) is quick


def test_products_are_tried_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    by_products: Attention = attention.attend_by_products
    kernels: Attention = functional.scaled_dot_product_attention

    def slow(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return kernels(query, key, value)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", slow)
    assert attention.fastest_attention(SHAPE, CPU, torch.bfloat16) is by_products

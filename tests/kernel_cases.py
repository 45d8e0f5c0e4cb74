"""What kernels.cu must compute, beside the same arithmetic in float64.

Imported by tests that have a fixture `make`, which makes the kernels of a type, and a fixture
`device`: on a GPU, and where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from captioner.inference.kernel_trial import PlainKernels
from captioner.inference.kernels import MOST_QUERIES, Kernels, suits_attention

Make = Callable[[torch.dtype], Kernels]
HALF = torch.float16
#: Of rounding once, relative to numbers around 1.
ROUNDING = {torch.float16: 2**-10, torch.bfloat16: 2**-7}
half_types = pytest.mark.parametrize("dtype", ROUNDING, ids=str)


def numbers(*shape: int, device: torch.device, dtype: torch.dtype = HALF, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


def attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = query.double() @ keys.double().transpose(2, 3) / math.sqrt(query.shape[3])
    if mask is not None:
        scores = scores + mask.double()
    return scores.softmax(-1) @ values.double()


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Equal but for rounding of the sums and, once, of the result."""
    rounding = ROUNDING[found.dtype]
    torch.testing.assert_close(found.double(), expected.double(), rtol=rounding, atol=2e-3)


@half_types
@pytest.mark.parametrize("width", [8, 48, 264, 768, 1024, 4096])
@pytest.mark.parametrize("rows", [1, 37])
def test_sum_and_norm(
    make: Make, device: torch.device, dtype: torch.dtype, width: int, rows: int
) -> None:
    kernels = make(dtype)
    stream, change = (
        numbers(rows, width, device=device, dtype=dtype, seed=seed) for seed in (1, 2)
    )
    weight, bias = (numbers(width, device=device, dtype=dtype, seed=seed) for seed in (3, 4))
    total = torch.full_like(stream, math.nan)
    found = kernels.add_norm(stream, change, weight, bias, 1e-5, total)
    assert torch.equal(total, stream + change)
    rest = (weight.double(), bias.double(), 1e-5)
    assert_close(found, functional.layer_norm(total.double(), (width,), *rest))
    # The sum goes nowhere, or there is none.
    assert torch.equal(kernels.add_norm(stream, change, weight, bias, 1e-5, None), found)
    assert torch.equal(kernels.add_norm(total, None, weight, bias, 1e-5, None), found)


def test_the_norm_uses_its_epsilon(make: Make, device: torch.device) -> None:
    stream = numbers(3, 64, device=device) * 1e-3
    one, nothing = torch.ones_like(stream[0]), torch.zeros_like(stream[0])
    for epsilon in (1e-12, 1e-5):
        found = make(HALF).add_norm(stream, None, one, nothing, epsilon, None)
        assert_close(found, functional.layer_norm(stream.double(), (64,), eps=epsilon))


@pytest.mark.parametrize("queries", range(1, MOST_QUERIES + 1))
@pytest.mark.parametrize("states", [1, 37, 577])
def test_attention_to_the_image(
    make: Make, device: torch.device, queries: int, states: int
) -> None:
    query = numbers(2, queries, 3, 64, device=device, seed=1).transpose(1, 2) * 3
    keys, values = (numbers(2, 3, states, 64, device=device, seed=seed) for seed in (2, 3))
    assert_close(make(HALF).attend_image(query, keys, values), attention(query, keys, values))


@half_types
@pytest.mark.parametrize("size", [8, 16, 32, 64, 128, 256])
def test_heads_of_any_size_that_suits(
    make: Make, device: torch.device, dtype: torch.dtype, size: int
) -> None:
    query = numbers(2, 2, 3, size, device=device, dtype=dtype, seed=1).transpose(1, 2)
    keys, values = (
        numbers(2, 3, 100, size, device=device, dtype=dtype, seed=seed) for seed in (2, 3)
    )
    assert suits_attention(2, 100, size)
    assert_close(make(dtype).attend_image(query, keys, values), attention(query, keys, values))


def test_keys_may_lie_in_any_order(make: Make, device: torch.device) -> None:
    query = numbers(2, 3, 4, 64, device=device, seed=1).transpose(1, 2)
    joined = numbers(2, 577, 2, 4, 64, device=device, seed=2).permute(2, 0, 3, 1, 4)
    keys, values = joined.unbind(0)
    assert_close(make(HALF).attend_image(query, keys, values), attention(query, keys, values))


def test_great_scores_do_not_overflow(make: Make, device: torch.device) -> None:
    query = numbers(1, 2, 2, 64, device=device, seed=1).transpose(1, 2) * 100
    keys, values = (numbers(1, 2, 50, 64, device=device, seed=seed) for seed in (2, 3))
    assert_close(
        make(HALF).attend_image(query, keys * 10, values), attention(query, keys * 10, values)
    )


@pytest.mark.parametrize("queries", range(1, MOST_QUERIES + 1))
@pytest.mark.parametrize("slots", [32, 96, 800])
def test_attention_to_tokens(make: Make, device: torch.device, queries: int, slots: int) -> None:
    joined = numbers(2, queries, 3, 3, 64, device=device, seed=1)
    keys, values = (numbers(2, 3, slots, 64, device=device, seed=seed) for seed in (2, 3))
    places = torch.randperm(slots, generator=torch.Generator().manual_seed(4))[:queries].to(device)
    mask = torch.where(numbers(2, 1, queries, slots, device=device, seed=5) > 0, 0.0, -math.inf)
    mask[..., places[0]] = 0
    query, key, value = joined.permute(2, 0, 3, 1, 4).unbind(0)
    new_keys = keys.clone().index_copy_(2, places, key)
    new_values = values.clone().index_copy_(2, places, value)
    found = make(HALF).attend_tokens(joined.flatten(2), places, mask.to(HALF), keys, values)
    assert torch.equal(keys, new_keys)
    assert torch.equal(values, new_values)
    assert_close(found, attention(query, new_keys, new_values, mask))


@pytest.mark.parametrize(("queries", "slots"), [(8, 1504), (5, 2432), (3, 4064)])
def test_as_many_slots_as_fit(make: Make, device: torch.device, queries: int, slots: int) -> None:
    """Slots come in multiples of 32; more of them do not suit."""
    assert suits_attention(queries, slots, 64)
    assert not suits_attention(queries, slots + 32, 64)
    joined = numbers(1, queries, 3, 1, 64, device=device, seed=1)
    keys, values = (numbers(1, 1, slots, 64, device=device, seed=seed) for seed in (2, 3))
    places = torch.arange(slots - queries, slots, device=device)
    mask = torch.zeros(1, 1, queries, slots, device=device, dtype=HALF)
    found = make(HALF).attend_tokens(joined.flatten(2), places, mask, keys, values)
    query = joined[:, :, 0].transpose(1, 2)
    assert_close(found, attention(query, keys, values))
    assert_close(make(HALF).attend_image(query, keys, values), attention(query, keys, values))


def test_a_first_token_sees_itself_alone(make: Make, device: torch.device) -> None:
    """Nothing of the other slots gets in, whatever numbers are there."""
    joined = numbers(2, 1, 3, 3, 64, device=device, seed=1)
    keys, values = (numbers(2, 3, 32, 64, device=device, seed=seed) for seed in (2, 3))
    mask = torch.full((2, 1, 1, 32), -math.inf, device=device, dtype=HALF)
    mask[..., 5] = 0
    places = torch.tensor([5], device=device)
    found = make(HALF).attend_tokens(joined.flatten(2), places, mask, keys, values)
    assert torch.equal(found.transpose(1, 2), joined[:, :, 2])


def test_what_they_are_compared_with_computes_the_same(make: Make, device: torch.device) -> None:
    """`PlainKernels`, which stands behind every trial, takes the same arguments."""
    query = numbers(2, 3, 4, 64, device=device, seed=1).transpose(1, 2)
    keys, values = (numbers(2, 4, 37, 64, device=device, seed=seed) for seed in (2, 3))
    expected = PlainKernels().attend_image(query, keys, values)
    assert_close(make(HALF).attend_image(query, keys, values), expected)

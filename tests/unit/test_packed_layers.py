"""oneDNN's layers compute what PyTorch's do, and round no more often."""

from __future__ import annotations

import platform

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from captioner.inference.blip import GeluLinear, ResidualLinear
from captioner.inference.packed_layers import PackedLinear, onednn_runs


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    if not onednn_runs(found):
        pytest.skip(f"oneDNN has no {found} on this CPU")
    return found


def layer(kind: type[nn.Linear], dtype: torch.dtype) -> nn.Linear:
    """Of 40 inputs and 56 outputs, with a bias that stands out."""
    generator = torch.Generator().manual_seed(3)
    made = kind(40, 56, dtype=dtype)
    with torch.no_grad():
        made.weight.normal_(0, 0.3, generator=generator)
        made.bias.normal_(0, 3, generator=generator)
    return made


def random(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4)).to(dtype)


def exactly(layer: nn.Linear, x: Tensor) -> Tensor:
    return functional.linear(x.double(), layer.weight.double(), layer.bias.double())


def assert_rounded_once(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Half a last place of the type, and what sums in float32 are off."""
    assert found.dtype == dtype
    assert found.shape == exact.shape
    last_place = torch.finfo(dtype).eps * exact.abs()
    assert ((found.double() - exact).abs() <= last_place / 2 + 2e-5).all()


@pytest.mark.parametrize("rows", [1, 8, 577])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (2, 300)])
@torch.inference_mode()
def test_a_packed_layer_is_the_layer(dtype: torch.dtype, rows: int, shape: tuple[int, int]) -> None:
    plain, x = layer(nn.Linear, dtype), random(dtype, *shape, 40)
    packed = PackedLinear(plain, rows)
    assert (packed.in_features, packed.out_features) == (40, 56)
    assert_rounded_once(packed(x), exactly(plain, x), dtype)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (2, 300)])
@torch.inference_mode()
def test_a_packed_layer_adds_to_the_stream(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    plain, x = layer(ResidualLinear, dtype), random(dtype, *shape, 40)
    stream = random(dtype, *shape, 56) * 5
    before = stream.clone()
    found = PackedLinear(plain, 8)(x, stream)
    assert_rounded_once(found, exactly(plain, x) + stream.double(), dtype)
    assert torch.equal(stream, before)  # others read it, too


@torch.inference_mode()
def test_a_packed_layers_gelu_is_the_exact_one(dtype: torch.dtype) -> None:
    plain = layer(GeluLinear, dtype)
    x = random(dtype, 5, 3, 40)
    assert_rounded_once(PackedLinear(plain, 8)(x), functional.gelu(exactly(plain, x)), dtype)
    # Near -2.3 the tanh form is furthest away: some 3 last places of bfloat16, of 2**-13 each.
    same = GeluLinear(32, 32, dtype=dtype)
    same.weight.copy_(torch.eye(32))
    same.bias.zero_()
    values = torch.linspace(-2.4, -2.2, 32).to(dtype)[None]
    found = PackedLinear(same, 8)(values).double()
    erf, tanh = (functional.gelu(values.double(), approximate=form) for form in ("none", "tanh"))
    # Of all of them: kernels of some CPUs may be one place off here and there.
    assert (found - erf).abs().mean() < (2**-13 if dtype == torch.bfloat16 else 2**-20)
    assert (found - tanh).abs().mean() > 2 * 2**-13
    # Of other layers nothing is made but the product.
    linear = nn.Linear(32, 32, dtype=dtype)
    linear.load_state_dict(same.state_dict())
    assert torch.equal(PackedLinear(linear, 8)(values), values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_are_not_for_onednn(dtype: torch.dtype) -> None:
    assert not onednn_runs(dtype)


def test_processors_of_arm_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert onednn_runs(torch.float32)
    for name, runs in (("AMD64", True), ("aarch64", False), ("arm64", False)):
        monkeypatch.setattr(platform, "machine", lambda name=name: name)
        assert onednn_runs(torch.float32) is runs

"""The model with fused layers is the model; their kernels are PyTorch's operators here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captioner.inference import GenerationOptions, acceleration, load_captioner
from captioner.inference.blip import Blip, ResidualLinear, TextLayer, project, split_heads
from captioner.inference.checkpoint import open_checkpoint
from captioner.inference.cuda_graphs import GraphRunner
from captioner.inference.fused_layers import (
    DeferringLinear,
    Sum,
    SummingNorm,
    WidenedLinear,
    fuse,
    project_in_place,
)
from captioner.inference.fused_weights import load_blip
from captioner.inference.kernel_trial import PlainKernels
from captioner.inference.kernels import MOST_QUERIES
from captioner.inference.runners import EagerRunner
from checkpoints import random_picture, save_tiny_blip
from recorder import StandIn

CPU = torch.device("cpu")
PICTURES = [random_picture(seed) for seed in range(9)]
OPTIONS = [
    GenerationOptions(
        prompt=("", "a picture of", "a photo of the red dog with a boat")[index % 3],
        num_beams=(1, 3, 6)[index // 3],
        num_return_sequences=(1, 3, 6)[index // 3],
        max_new_tokens=8,
    )
    for index in range(9)
]


@pytest.fixture(scope="module", params=["tiny", "demo"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Heads of 12 numbers, which do not suit the kernels of attention, and of 32, which do."""
    if request.param == "demo":
        return "demo"
    return str(save_tiny_blip(tmp_path_factory.mktemp("tiny")))


def blip(checkpoint: str) -> Blip:
    return load_blip(open_checkpoint(checkpoint), CPU, torch.float64)


class Counting(PlainKernels):
    """Counts what each kernel was asked for."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.norms, self.image_queries, self.token_queries = 0, list[int](), list[int]()

    def add_norm(self, stream: Tensor, *rest: Any) -> Tensor:
        assert stream.is_contiguous()
        self.norms += 1
        return super().add_norm(stream, *rest)

    def attend_image(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        assert query.transpose(1, 2).is_contiguous()
        assert keys.stride() == values.stride()
        self.image_queries.append(query.shape[2])
        return super().attend_image(query, keys, values)

    def attend_tokens(self, joined: Tensor, slots: Tensor, mask: Tensor, *rest: Tensor) -> Tensor:
        assert joined.is_contiguous()
        assert mask.is_contiguous()
        assert all(one.is_contiguous() for one in rest)
        assert slots.is_contiguous()
        self.token_queries.append(joined.shape[1])
        return super().attend_tokens(joined, slots, mask, *rest)


def test_image_states_are_the_same(checkpoint: str) -> None:
    plain, fused = blip(checkpoint), blip(checkpoint)
    fuse(fused, PlainKernels())
    side = open_checkpoint(checkpoint).pixels.size
    pixels = torch.randn(3, side, side, 3, dtype=torch.float64)
    with torch.inference_mode():
        assert torch.equal(fused.vision(pixels), plain.vision(pixels))


@pytest.mark.parametrize("recorded", [False, True])
def test_captions_are_the_same(checkpoint: str, recorded: bool) -> None:
    def load() -> Any:
        return load_captioner(checkpoint, device="cpu", dtype="float64")

    fused, kernels = load(), Counting()
    fuse(fused.model, kernels)
    kernels.forget()  # the trial
    stand_in = StandIn()
    runner: Any = GraphRunner(fused.model, stand_in) if recorded else EagerRunner(fused.model)
    fused._runner = runner
    expected = load().generate(PICTURES, OPTIONS)
    for _ in range(2):  # the second time on recordings alone
        assert fused.generate(PICTURES, OPTIONS) == expected
    assert kernels.norms
    assert not recorded or (runner._works and stand_in.replayed > stand_in.recorded > 0)
    if checkpoint == "demo":
        # For one caption, and for more than five, PyTorch's attention to images is as fast.
        assert 3 in kernels.image_queries
        assert set(kernels.image_queries) <= {2, 3, 4, 5}
        # Prompts of many tokens do not suit.
        assert {1, 3, 6} <= set(kernels.token_queries) <= set(range(1, 9))
    else:
        assert not kernels.image_queries + kernels.token_queries


def test_nothing_is_left_of_the_slower_layers_and_no_weight_is_copied(checkpoint: str) -> None:
    model = blip(checkpoint)
    before = {parameter.data_ptr() for parameter in model.parameters()}
    residuals = sum(isinstance(module, ResidualLinear) for module in model.modules())
    norms = sum(isinstance(module, nn.LayerNorm) for module in model.modules())
    fuse(model, PlainKernels())
    modules = list(model.modules())
    assert {parameter.data_ptr() for parameter in model.parameters()} == before
    assert not any(isinstance(module, ResidualLinear | nn.LayerNorm) for module in modules)
    assert sum(isinstance(module, DeferringLinear) for module in modules) == residuals
    assert sum(isinstance(module, SummingNorm) for module in modules) == norms


def test_each_norm_has_its_own_epsilon(checkpoint: str) -> None:
    model = blip(checkpoint)
    expected = [module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)]
    fuse(model, PlainKernels())
    found = [module.eps for module in model.modules() if isinstance(module, SummingNorm)]
    assert found == expected
    assert len(set(found)) == 2


@pytest.mark.parametrize("offset", [0, 1, 8])
def test_parameters_lie_where_kernels_can_read_them(offset: int) -> None:
    """A kernel that reads 16 bytes from elsewhere ends the process's use of the device."""
    norm = nn.LayerNorm(32, dtype=torch.float16)
    memory = torch.randn(3, 64).half()
    norm.weight = nn.Parameter(memory[0, offset : offset + 32], requires_grad=False)
    norm.bias = nn.Parameter(memory[1, 2 * offset : 2 * offset + 32], requires_grad=False)
    fused = SummingNorm(norm, PlainKernels(), keeps_sum=False)
    for found, expected in ((fused.weight, norm.weight), (fused.bias, norm.bias)):
        assert torch.equal(found, expected)
        assert found.data_ptr() % 16 == 0
        assert (found is expected) == (expected.data_ptr() % 16 == 0)


def test_image_states_are_projected_to_where_they_stay() -> None:
    model = blip("demo")
    layer = next(iter(model.text.layers))
    assert isinstance(layer, TextLayer)
    states = torch.randn(3, 37, 128, dtype=torch.float64)
    with torch.inference_mode():
        plain = model.text.new_cache(states, 4)
        model.text.by_state = True
        joined = model.text.new_cache(states, 4)
        assert joined.image_keys[0].stride() != plain.image_keys[0].stride()
        # Of the first images alone, too.
        for rows in (3, 2):
            project(layer.image_key_value, states[:rows], *plain.first(rows).of_images(1))
            project_in_place(layer.image_key_value, states[:rows], *joined.first(rows).of_images(1))
            for found, expected in zip(joined.of_images(1), plain.of_images(1), strict=True):
                assert torch.equal(found, expected)
            for tensor in (*plain.of_images(1), *joined.of_images(1)):
                tensor.zero_()


def test_a_sum_that_nobody_has_normalised() -> None:
    stream, change = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(Sum(stream, change).total, stream + change)


def double(tensor: Tensor) -> Tensor:
    return tensor * 2


def nan(tensor: Tensor) -> Tensor:
    return tensor * torch.nan


@pytest.mark.parametrize("wrong", [double, nan])
@pytest.mark.parametrize("kernel", ["add_norm", "attend_image", "attend_tokens"])
def test_wrong_kernels_are_refused(
    monkeypatch: pytest.MonkeyPatch, kernel: str, wrong: Callable[[Tensor], Tensor]
) -> None:
    kernels = PlainKernels()
    right = getattr(kernels, kernel)
    monkeypatch.setattr(kernels, kernel, lambda *given: wrong(right(*given)))
    model = blip("demo")
    with pytest.raises(RuntimeError, match="of the kernels is wrong by"):
        fuse(model, kernels)
    assert not any(isinstance(module, SummingNorm) for module in model.modules())
    assert not model.text.by_state


def test_every_kernel_that_may_be_used_is_tried() -> None:
    """Each number of queries is compiled by itself."""
    kernels = Counting()
    fuse(blip("demo"), kernels)
    assert kernels.norms
    assert kernels.image_queries == kernels.token_queries == list(range(1, MOST_QUERIES + 1))


@pytest.mark.parametrize("place", [2, 3, 4])
def test_kernels_that_do_not_write_are_refused(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """The sum, the new keys, the new values."""
    kernels = PlainKernels()
    name = "add_norm" if place == 2 else "attend_tokens"
    right = getattr(kernels, name)

    def forgets(*given: Tensor) -> Tensor:
        index = 5 if place == 2 else place
        copies = [one.clone() if at == index else one for at, one in enumerate(given)]
        result: Tensor = right(*copies)
        return result

    monkeypatch.setattr(kernels, name, forgets)
    with pytest.raises(RuntimeError, match="of the kernels is wrong by"):
        fuse(blip("demo"), kernels)


def widened(layer: WidenedLinear, x: Tensor) -> Tensor:
    """`WidenedLinear.forward` where PyTorch has no such product."""
    out = x.double() @ layer.weight.double().t() + layer.bias.double()
    return out.float()


def test_without_kernels_the_model_runs_as_it_is_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object) -> None:
        raise ImportError("No module named 'cuda'")

    monkeypatch.setattr(acceleration, "CudaKernels", missing)
    monkeypatch.setattr(WidenedLinear, "forward", widened)
    captioner: Any = load_captioner("demo", device="cpu", dtype="float16")
    expected = captioner.generate(PICTURES, GenerationOptions())
    model = captioner.model
    words, bias = model.text.token_embedding.weight, model.text.lm_head.bias
    caplog.clear()  # of what loading says of float16 on a CPU
    with caplog.at_level(logging.WARNING):
        acceleration._use_own_kernels(model)
    (record,) = caplog.records
    assert "PyTorch's kernels alone" in record.message
    assert "No module named 'cuda'" in record.message
    # Half the memory: the words' own weight.
    assert model.text.lm_head.weight.data_ptr() == words.data_ptr()
    assert torch.equal(model.text.lm_head.bias, bias)
    assert any(isinstance(module, nn.LayerNorm) for module in model.modules())
    found = captioner.generate(PICTURES, GenerationOptions())
    assert [one[0].text for one in found] == [one[0].text for one in expected]


def test_without_such_a_product_the_last_layer_stays_float32(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On CPUs there is none."""
    model = load_blip(open_checkpoint("demo"), CPU, torch.float16)
    before = model.text.lm_head
    with caplog.at_level(logging.WARNING):
        acceleration._use_own_kernels(model)
    (record,) = caplog.records
    assert "PyTorch's kernels alone" in record.message
    assert model.text.lm_head is before
    assert model.text.lm_head_dtype == torch.float32


def test_heads_lie_side_by_side_in_what_kernels_read() -> None:
    """`suits_attention` counts on it."""
    joined = torch.arange(2 * 5 * 2 * 3 * 8).view(2, 5, 2 * 3 * 8)
    for part in split_heads(joined, 2, 3):
        assert part.stride()[-1] == 1
        assert not any(stride % 8 for stride in part.stride()[:-1])

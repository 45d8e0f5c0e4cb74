"""What is switched on for which type, folded pixels, threads by the quota."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from captioner.errors import ModelLoadError
from captioner.inference import acceleration, fast, load_captioner, packed_layers
from captioner.inference.acceleration import accelerate
from captioner.inference.blip import Blip, attend_tokens
from captioner.inference.checkpoint import open_checkpoint
from captioner.inference.fused_layers import WidenedLinear
from captioner.inference.fused_weights import load_blip
from captioner.inference.normalisation import PIXEL_ZERO, fold_normalisation
from captioner.inference.packed_layers import Float16Weight, PackedLinear, onednn_runs
from captioner.inference.pixels import PixelSettings
from captioner.inference.runners import EagerRunner
from captioner.inference.unprojected import UnprojectedRunner
from checkpoints import save_tiny_blip

CPU = torch.device("cpu")
onednn_bfloat16 = pytest.mark.skipif(
    not onednn_runs(torch.bfloat16), reason="oneDNN has no bfloat16 on this CPU"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_blip(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def blip(folder: Path, dtype: torch.dtype) -> Blip:
    """The model as it is loaded, with nothing switched on."""
    return load_blip(open_checkpoint(str(folder)), CPU, dtype)


@pytest.mark.parametrize(("before", "cores", "after"), [(4, 2, 2), (2, 8, 2), (1, 4, 1)])
def test_no_more_threads_than_cores_and_no_more_than_asked_for(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, before: int, cores: int, after: int
) -> None:
    monkeypatch.setattr(acceleration, "available_cores", lambda: cores)
    torch.set_num_threads(before)
    accelerate(blip(checkpoint, torch.float32))
    assert torch.get_num_threads() == after


def linear_layers(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@onednn_bfloat16
def test_in_bfloat16_every_linear_layer_is_packed(checkpoint: Path) -> None:
    model = blip(checkpoint, torch.bfloat16)
    before = linear_layers(model)
    # Patches, and 4 and 7 a layer; the word head and what is before it.
    assert len(before) == 1 + 2 * 4 + 2 * 7 + 2
    assert isinstance(accelerate(model), UnprojectedRunner)
    assert linear_layers(model) == set()
    packed = {name for name, one in model.named_modules() if isinstance(one, PackedLinear)}
    assert packed == before - {"text.lm_head"}
    assert isinstance(model.text.lm_head, Float16Weight)


@onednn_bfloat16
@pytest.mark.parametrize("error", [AttributeError, RuntimeError])
def test_without_fbgemm_the_last_layer_is_packed_like_the_others(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def missing(*_: object) -> None:
        raise error("no FBGEMM")

    monkeypatch.setattr(torch.ops.quantized, "linear_prepack_fp16", missing, raising=False)
    model = blip(checkpoint, torch.bfloat16)
    accelerate(model)
    assert isinstance(model.text.lm_head, PackedLinear)


def test_a_device_that_is_full_is_told_when_a_model_is_loaded(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Blip) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(fast, "accelerate", full)
    with pytest.raises(ModelLoadError, match=r"does not fit cpu: .*CUDA out of memory"):
        load_captioner(str(checkpoint), device="cpu", dtype="float32")


def test_too_little_memory_for_kernels_is_not_taken_for_no_kernels(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(WidenedLinear, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        acceleration._use_own_kernels(blip(checkpoint, torch.float16))


def test_in_float32_the_decoders_linear_layers_are_packed(checkpoint: Path) -> None:
    model = blip(checkpoint, torch.float32)
    encoders = {name for name in linear_layers(model) if name.startswith("vision.")}
    assert isinstance(accelerate(model), UnprojectedRunner)
    assert linear_layers(model) == encoders
    assert isinstance(model.text.lm_head, PackedLinear)
    for layer in model.text.layers:
        # Kernels made for half types are not for this one.
        assert layer.attend_tokens is attend_tokens
        attend: Any = layer.attend_image
        assert attend._attend is functional.scaled_dot_product_attention


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_keep_their_layers(checkpoint: Path, dtype: torch.dtype) -> None:
    model = blip(checkpoint, dtype)
    before = linear_layers(model)
    assert type(accelerate(model)) is EagerRunner
    assert linear_layers(model) == before


def test_without_onednn_float32_keeps_its_layers_too(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_layers, "_ONEDNN", SimpleNamespace())
    test_other_types_keep_their_layers(checkpoint, torch.float32)
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    test_other_types_keep_their_layers(checkpoint, torch.float32)


@pytest.fixture(params=["packed", "plain"])
def half(checkpoint: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """In bfloat16, with oneDNN's layers and without."""
    if request.param == "plain":
        monkeypatch.setattr(acceleration, "onednn_runs", lambda _dtype: False)
    elif not onednn_runs(torch.bfloat16):
        pytest.skip("oneDNN has no bfloat16 on this CPU")
    return load_captioner(str(checkpoint), device="cpu", dtype="bfloat16", backend="fast")


@torch.inference_mode()
def test_the_word_head_is_float32_in_bfloat16(half: Any, checkpoint: Path) -> None:
    decoder = half.model.text
    x = torch.randn(4, 3, 48, generator=torch.Generator().manual_seed(4)).to(torch.bfloat16)
    found = decoder.logits(x)
    assert found.dtype == torch.float32
    rounded = found.to(torch.bfloat16).float()
    assert (found != rounded).float().mean() > 0.9
    # And its weights are those of the file, not the embedding's of eight bits: of eleven, or whole.
    tensors = load_file(checkpoint / "model.safetensors")
    words = tensors["text_decoder.bert.embeddings.word_embeddings.weight"]
    bias = tensors["text_decoder.cls.predictions.bias"]
    last = decoder.norm_transform(decoder.transform(x))
    assert last.dtype == torch.bfloat16
    plain = isinstance(decoder.lm_head, nn.Linear)
    kept = words if plain else words.half().float()
    exact = functional.linear(last.float(), kept, bias)
    assert torch.allclose(found, exact, rtol=0, atol=1e-5)


SETTINGS = [
    PixelSettings(size=32),
    PixelSettings(size=32, mean=(0.1, 0.9, 0.5), std=(0.05, 2.0, 0.7), rescale_factor=1 / 127.5),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["CLIP's", "others"])
def test_folded_normalisation_is_normalisation_first(settings: PixelSettings) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(48, 3, 8, 8, generator=generator, dtype=torch.float64) / 8
    bias = torch.randn(48, generator=generator, dtype=torch.float64)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=generator).double()
    mean, std = (
        torch.tensor(one, dtype=torch.float64).view(3, 1, 1)
        for one in (settings.mean, settings.std)
    )
    normal = (pixels * settings.rescale_factor - mean) / std
    folded = fold_normalisation(weight, bias, settings)
    assert [one.dtype for one in folded] == [torch.float64] * 2
    found = functional.conv2d(pixels - PIXEL_ZERO, *folded, stride=8)
    expected = functional.conv2d(normal, weight, bias, stride=8)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_take_pixels_exactly(checkpoint: Path, dtype: str) -> None:
    model: Any = load_captioner(str(checkpoint), device="cpu", dtype=dtype, backend="fast")
    picture = (np.arange(32 * 32 * 3) % 256).astype(np.uint8).reshape(32, 32, 3)
    read_only = picture.copy()
    read_only.flags.writeable = False
    pictures = [picture, picture[::-1], picture[:, ::-1], read_only, picture.transpose(1, 0, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.model_input(pictures)
    assert found.dtype == getattr(torch, dtype)
    wanted = np.stack(pictures).astype(np.int64) - PIXEL_ZERO
    assert found.long().tolist() == wanted.tolist()

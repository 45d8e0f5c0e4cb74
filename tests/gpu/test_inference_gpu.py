"""The reference backend on a CUDA device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from captioner.errors import ModelLoadError
from captioner.inference import Captioner, GenerationOptions, load_captioner
from checkpoints import random_picture, save_tiny_blip

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

_IMAGES = [random_picture(seed) for seed in range(8)]
_OPTIONS = [
    GenerationOptions(num_beams=1, max_new_tokens=12),
    GenerationOptions(prompt="a picture of", max_new_tokens=12),
    GenerationOptions(num_beams=5, num_return_sequences=5, length_penalty=2.0, max_new_tokens=8),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_blip(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def on_cpu(folder: Path) -> Captioner:
    return load_captioner(str(folder), device="cpu", dtype="float32")


def test_auto_is_float16_on_the_first_device(folder: Path) -> None:
    info = load_captioner(str(folder)).info
    assert (info.device, info.dtype) == ("cuda:0", "float16")


@pytest.mark.parametrize("options", _OPTIONS)
def test_float32_equals_the_cpu(
    folder: Path, on_cpu: Captioner, options: GenerationOptions
) -> None:
    on_gpu = load_captioner(str(folder), device="cuda", dtype="float32")
    pairs = zip(on_gpu.generate(_IMAGES, options), on_cpu.generate(_IMAGES, options), strict=True)
    for theirs, ours in pairs:
        assert [caption.token_ids for caption in theirs] == [caption.token_ids for caption in ours]
        assert [c.score for c in theirs] == pytest.approx([c.score for c in ours], rel=1e-4)


def test_float16_captions_are_finite(folder: Path) -> None:
    results = load_captioner(str(folder), device="cuda").generate(_IMAGES, _OPTIONS[1])
    assert all(np.isfinite(result[0].score) for result in results)


def test_a_seed_repeats_itself_and_leaves_the_process_alone(folder: Path) -> None:
    on_gpu = load_captioner(str(folder), device="cuda", dtype="float32")
    options = GenerationOptions(num_beams=1, do_sample=True, seed=5)
    torch.manual_seed(3)
    expected = torch.rand(4, device="cuda")
    torch.manual_seed(3)
    first = on_gpu.generate(_IMAGES, options)
    assert torch.equal(torch.rand(4, device="cuda"), expected)
    assert on_gpu.generate(_IMAGES, options) == first
    assert on_gpu.generate(_IMAGES, replace(options, seed=6)) != first


def test_closing_gives_the_memory_back(folder: Path) -> None:
    before = torch.cuda.memory_allocated()
    model = load_captioner(str(folder), device="cuda")
    assert torch.cuda.memory_allocated() > before
    model.close()
    assert torch.cuda.memory_allocated() <= before


def test_a_device_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="CUDA"):
        load_captioner(str(folder), device=f"cuda:{torch.cuda.device_count()}")

"""The fast backend on a CUDA device, CUDA graphs included."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from captioner.inference import GenerationOptions, load_captioner
from captioner.inference.cuda_graphs import GraphRunner
from captioner.inference.runners import EagerRunner
from checkpoints import random_picture, save_tiny_blip

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

_IMAGES = [random_picture(seed) for seed in range(11)]
_PROMPTS = ("", "a picture of", "the woman ' s dog with a red boat")
_OPTIONS = [
    GenerationOptions(
        prompt=_PROMPTS[index % 3],
        num_beams=(1, 3, 3, 5)[index % 4],
        max_new_tokens=6 + index,
        repetition_penalty=(1.0, 1.3)[index % 2],
        no_repeat_ngram_size=(0, 2)[index % 2],
    )
    for index in range(len(_IMAGES))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_blip(tmp_path_factory.mktemp("model"))


def _load(folder: Path, dtype: str, device: str = "cuda", backend: str = "fast") -> Any:
    return load_captioner(str(folder), device=device, dtype=dtype, backend=backend)


def _tokens(results: Any) -> list[list[tuple[int, ...]]]:
    return [[caption.token_ids for caption in one] for one in results]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_equals_transformers_on_the_cpu(folder: Path, dtype: str) -> None:
    expected = _tokens(_load(folder, dtype, "cpu", "transformers").generate(_IMAGES, _OPTIONS))
    model = _load(folder, dtype)
    for _ in range(2):  # the second time on recordings alone
        assert _tokens(model.generate(_IMAGES, _OPTIONS)) == expected


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["tiny", "demo"])  # the latter's attention suits our kernels
def test_graphs_are_used_and_give_what_the_decoder_gives(
    folder: Path, name: str, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = _load(folder if name == "tiny" else Path("demo"), dtype)
    assert isinstance(model._runner, GraphRunner)
    with caplog.at_level(logging.WARNING):
        found = [_tokens(model.generate(_IMAGES, _OPTIONS)) for _ in range(2)]
    assert not caplog.records
    assert any(buffers.recordings for buffers in model._runner._kept.values())
    model._runner = EagerRunner(model.model)
    assert found == [_tokens(model.generate(_IMAGES, _OPTIONS))] * 2


def test_joint_captions(folder: Path) -> None:
    groups = [_IMAGES[:2], _IMAGES[2:7], _IMAGES[7:9]]
    options = GenerationOptions(max_new_tokens=8)
    expected = _load(folder, "float64", "cpu", "transformers").generate_joint(groups, options)
    found = _load(folder, "float64").generate_joint(groups, options)
    assert _tokens(found) == _tokens(expected)


def test_models_share_the_work_space_of_recording(folder: Path) -> None:
    def allocated() -> int:
        _load(folder, "float16").generate(_IMAGES, _OPTIONS)
        gc.collect()
        return torch.cuda.memory_allocated()

    first = allocated()
    assert [allocated() for _ in range(3)] == [first] * 3


def test_samples_are_those_of_the_cpu(folder: Path) -> None:
    options = GenerationOptions(num_beams=1, do_sample=True, seed=5, num_return_sequences=3)
    on_gpu, on_cpu = _load(folder, "float64"), _load(folder, "float64", "cpu")
    assert _tokens(on_gpu.generate(_IMAGES, options)) == _tokens(on_cpu.generate(_IMAGES, options))


def test_closing_gives_graphs_and_buffers_back(folder: Path) -> None:
    _load(folder, "float16").generate(_IMAGES, _OPTIONS)  # libraries' work spaces stay
    gc.collect()
    before = torch.cuda.memory_allocated()
    model = _load(folder, "float16")
    model.generate(_IMAGES, _OPTIONS)
    model.close()
    assert torch.cuda.memory_allocated() <= before


def test_recordings_are_made_anew_after_memory_has_run_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = _load(folder, "float16")
    expected = _tokens(model.generate(_IMAGES, _OPTIONS))
    runner = model._runner
    # What an error holds on to until it is forgotten.
    held = [result for one in runner._kept.values() for _, result in one.recordings.values()]
    assert held
    runner.release()
    torch.cuda.empty_cache()
    with caplog.at_level(logging.WARNING):
        assert _tokens(model.generate(_IMAGES, _OPTIONS)) == expected
    assert not caplog.records
    assert any(buffers.recordings for buffers in runner._kept.values())


def test_memory_does_not_grow(folder: Path) -> None:
    model = _load(folder, "float16")
    for _ in range(3):
        model.generate(_IMAGES, _OPTIONS)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(50):
        model.generate(_IMAGES, _OPTIONS)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before

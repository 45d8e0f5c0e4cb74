"""What the equality suites are worth: each typical mistake makes them fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from captioner.inference import GenerationOptions, load_captioner
from captioner.inference import blip as architecture
from checkpoints import random_picture, save_tiny_blip

OPTIONS = [
    GenerationOptions(num_beams=beams, num_return_sequences=beams, prompt=prompt, max_new_tokens=10)
    for beams in (1, 3)
    for prompt in ("", "a picture of")
    for _ in range(3)
]
PICTURES = [random_picture(seed) for seed in range(len(OPTIONS))]
Mutation = Callable[[Any, pytest.MonkeyPatch], None]


def drop_bias(fast: Any, patch: pytest.MonkeyPatch) -> None:
    fast.model.text.layers[1].attention_output.bias.zero_()


def drop_query_bias(fast: Any, patch: pytest.MonkeyPatch) -> None:
    joined = fast.model.vision.layers[0].query_key_value
    joined.bias[: joined.out_features // 3].zero_()


def swap_key_and_value(fast: Any, patch: pytest.MonkeyPatch) -> None:
    layer = fast.model.text.layers[0].image_key_value
    layer.weight.copy_(layer.weight.roll(layer.out_features // 2, 0))


def next_position(fast: Any, patch: pytest.MonkeyPatch) -> None:
    positions = fast.model.text.position_embedding.weight
    positions.copy_(positions.roll(-1, 0))


def tanh_gelu(fast: Any, patch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return functional.gelu(functional.linear(x, self.weight, self.bias), approximate="tanh")

    patch.setattr(architecture.GeluLinear, "forward", forward)


def paper_epsilon(fast: Any, patch: pytest.MonkeyPatch) -> None:
    for layer in fast.model.vision.layers:
        layer.norm_attention.eps = 1e-6


def wrong_end(fast: Any, patch: pytest.MonkeyPatch) -> None:
    import dataclasses

    fast._text = dataclasses.replace(fast._text, sep_token_id=2)  # eos_token_id of config.json


def raw_pixels(fast: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "captioner.inference.fast.prepare",
        lambda pixels, dtype, settings: pixels.to(dtype) / 255,
    )


def parents_forgotten(fast: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("captioner.inference.captions.of_parents", lambda values, parents: values)


MUTATIONS: list[Mutation] = [
    drop_bias,
    drop_query_bias,
    swap_key_and_value,
    next_position,
    tanh_gelu,
    paper_epsilon,
    wrong_end,
    raw_pixels,
    parents_forgotten,
]


def results(captioner: Any) -> list[list[tuple[tuple[int, ...], float]]]:
    return [[(c.token_ids, c.score) for c in one] for one in captioner.generate(PICTURES, OPTIONS)]


def equal(ours: Any, theirs: Any) -> bool:
    """As the suites ask: the same tokens, and scores to 1e-5 relative."""
    return all(
        [t for t, _ in mine] == [t for t, _ in other]
        and [s for _, s in mine] == pytest.approx([s for _, s in other], rel=1e-5)
        for mine, other in zip(ours, theirs, strict=True)
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_blip(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> Any:
    reference = load_captioner(
        str(checkpoint), device="cpu", dtype="float64", backend="transformers"
    )
    return results(reference)


def test_unchanged_it_is_equal(checkpoint: Path, expected: Any) -> None:
    fast = load_captioner(str(checkpoint), device="cpu", dtype="float64", backend="fast")
    assert equal(results(fast), expected)


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_every_mistake_is_found(
    mutate: Mutation, checkpoint: Path, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = load_captioner(str(checkpoint), device="cpu", dtype="float64", backend="fast")
    with torch.no_grad():
        mutate(fast, monkeypatch)
    assert not equal(results(fast), expected)

"""Samples follow the processed distribution, and each request draws from its own numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from captioner.inference import Captioner, GenerationOptions, load_captioner
from captioner.inference.processors import warp
from captioner.inference.sampling import draw
from checkpoints import random_picture, save_tiny_blip


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    folder: Path = save_tiny_blip(tmp_path_factory.mktemp("tiny"))
    return load_captioner(str(folder), device="cpu", dtype="float32", backend="fast")


def sampling(**values: object) -> GenerationOptions:
    return GenerationOptions.from_mapping(
        {"do_sample": True, "num_beams": 1, "max_new_tokens": 6} | values
    )


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([0, 1, 3, 50]),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
)
def test_what_is_drawn_from_is_transformers_distribution(
    seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(seed))
    ids = torch.zeros(4, 1, dtype=torch.long)
    expected = TemperatureLogitsWarper(temperature)(ids, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(ids, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(ids, expected)
    options = sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    assert torch.equal(warp(logits, options), expected)


def test_numbers_spread_evenly_give_the_distribution_itself() -> None:
    scores = torch.tensor([0.5, -1.0, float("-inf"), 2.0, 0.0])
    numbers = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    drawn = Counter(draw(scores.expand(100_000, -1), numbers).tolist())
    for token, share in enumerate(scores.softmax(-1).tolist()):
        assert drawn[token] / 100_000 == pytest.approx(share, abs=2e-5)


def test_a_seed_decides_and_neighbours_do_not(fast: Captioner) -> None:
    images = [random_picture(seed) for seed in range(4)]
    options = [sampling(seed=seed, num_return_sequences=3) for seed in range(4)]
    first = fast.generate(images, options)
    assert fast.generate(images, options) == first
    (alone,) = fast.generate(images[2:3], options[2:3])
    assert [c.token_ids for c in alone] == [c.token_ids for c in first[2]]
    other = fast.generate(images, [sampling(seed=9, num_return_sequences=3)] * 4)
    assert [[c.token_ids for c in one] for one in other] != [
        [c.token_ids for c in one] for one in first
    ]


def test_without_a_seed_every_call_draws_anew(fast: Captioner) -> None:
    images = [random_picture(seed) for seed in range(8)]
    options = sampling(temperature=2.0)
    calls = [[one[0].token_ids for one in fast.generate(images, options)] for _ in range(2)]
    assert calls[0] != calls[1]


def test_a_cold_sample_is_the_greedy_caption(fast: Captioner) -> None:
    images = [random_picture(seed) for seed in range(6)]
    greedy = fast.generate(images, GenerationOptions(num_beams=1, max_new_tokens=6))
    cold = fast.generate(images, sampling(temperature=1e-4, seed=1))
    assert [one[0].token_ids for one in cold] == [one[0].token_ids for one in greedy]

"""Half precision: differences are near-ties, and no more of them than transformers has itself."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from captioner.inference import GenerationOptions, load_captioner
from captioner.inference.blip import Tokens
from captioner.inference.packed_layers import PackedLinear
from checkpoints import DEC, random_picture, save_tiny_blip

PICTURES = [random_picture(seed) for seed in range(48)]
#: Ids that logits are compared along.
FORCED = [DEC, 5, 9, 17, 30]
GREEDY = GenerationOptions(num_beams=1, max_new_tokens=10)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_blip(tmp_path_factory.mktemp("tiny"))


def load(folder: Path, backend: str, dtype: str) -> Any:
    return load_captioner(str(folder), device="cpu", dtype=dtype, backend=backend)


def greedy(captioner: Any) -> list[tuple[int, ...]]:
    return [one[0].token_ids for one in captioner.generate(PICTURES, GREEDY)]


def teacher_forced(fast: Any, picture: Any, ids: list[int]) -> torch.Tensor:
    """Our logits `[len(ids), V]` after each of these ids, none of them our own choice."""
    from captioner.inference.pixels import resize

    with torch.inference_mode():
        states = fast._encode([resize(picture, fast._pixels.size)])
        decoder, length = fast.model.text, len(ids)
        cache = decoder.new_cache(states, length)
        decoder.project_image(states, cache)
        mask = torch.full((1, 1, length, length), float("-inf"), dtype=states.dtype).triu(1)
        slots = torch.arange(length)
        tokens = Tokens(torch.tensor([ids]), slots[None], slots, mask)
        logits: torch.Tensor = decoder.logits(decoder(tokens, cache))[0]
    return logits


def not_more(ours: int, theirs: int) -> bool:
    """Whether one count is as large as another but for chance.

    Both are random from CPU to CPU, whose kernels round differently, though the same in every run
    on one. Two standard deviations of the difference of such counts: one is passed on a sixth of
    all CPUs.
    """
    return ours <= theirs + 2 * math.sqrt(ours + theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_divergence_is_a_near_tie(checkpoint: Path, dtype: str) -> None:
    exact, half = load(checkpoint, "fast", "float32"), load(checkpoint, "fast", dtype)
    wanted, ours = greedy(exact), greedy(half)
    for picture, right, mine in zip(PICTURES, wanted, ours, strict=True):
        if right == mine:
            continue
        step = next(
            (k for k, (a, b) in enumerate(zip(right, mine, strict=False)) if a != b),
            min(len(right), len(mine)),
        )
        ids = [DEC, *right[:step]]
        logits = teacher_forced(exact, picture, ids)
        error = (teacher_forced(half, picture, ids) - logits)[-1].abs().max()
        best, second = logits[-1].topk(2).values
        assert best - second < 2 * error


@pytest.mark.long
@pytest.mark.parametrize("beams", [1, 3])
def test_there_are_no_more_divergences_than_transformers_has(tmp_path: Path, beams: int) -> None:
    """Counted over twenty models: with few pictures the numbers say nothing."""
    options = GenerationOptions(num_beams=beams, max_new_tokens=10)

    def captions(folder: Path, backend: str, dtype: str) -> list[tuple[int, ...]]:
        return [
            one[0].token_ids for one in load(folder, backend, dtype).generate(PICTURES, options)
        ]

    flips = Counter[tuple[str, str]]()
    for seed in range(11, 31):
        folder = save_tiny_blip(tmp_path / str(seed), seed=seed)
        wanted = captions(folder, "fast", "float32")
        for kind in itertools.product(("fast", "transformers"), ("bfloat16", "float16")):
            found = captions(folder, *kind)
            flips[kind] += sum(a != b for a, b in zip(wanted, found, strict=True))
    for dtype in ("bfloat16", "float16"):
        assert not_more(flips["fast", dtype], flips["transformers", dtype])
    assert flips["transformers", "bfloat16"] > 10


@pytest.mark.long
def test_no_more_words_differ_than_those_of_transformers(tmp_path: Path) -> None:
    """The best word after each of 60 ids: many more choices than there are captions."""
    flips = Counter[tuple[str, str]]()
    for seed in range(11, 31):
        folder = save_tiny_blip(tmp_path / str(seed), seed=seed)
        exact = load(folder, "fast", "float32")
        words = random.Random(seed)
        forced = [[DEC, *(words.randrange(5, DEC) for _ in range(59))] for _ in PICTURES]
        right = [
            teacher_forced(exact, picture, ids).argmax(-1)
            for picture, ids in zip(PICTURES, forced, strict=True)
        ]
        for dtype in ("bfloat16", "float16"):
            ours, theirs = load(folder, "fast", dtype), load(folder, "transformers", dtype)
            for picture, ids, best in zip(PICTURES, forced, right, strict=True):
                found = teacher_forced(ours, picture, ids).argmax(-1)
                flips["fast", dtype] += int((found != best).sum())
                with torch.inference_mode():
                    found = theirs.logits(picture, ids).argmax(-1)
                flips["transformers", dtype] += int((found != best).sum())
    for dtype in ("bfloat16", "float16"):
        assert not_more(flips["fast", dtype], flips["transformers", dtype])
    assert flips["transformers", "float16"] > 50


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logits_are_no_farther_from_float32_than_those_of_transformers(
    checkpoint: Path, dtype: str
) -> None:
    """Divergences are judged by our own error: it must not be larger than it has to be."""
    exact, ours = load(checkpoint, "fast", "float32"), load(checkpoint, "fast", dtype)
    theirs = load(checkpoint, "transformers", dtype)
    error = their_error = 0.0
    for picture in PICTURES:
        right = teacher_forced(exact, picture, FORCED)
        error += float((teacher_forced(ours, picture, FORCED) - right).abs().mean())
        with torch.inference_mode():
            their_error += float((theirs.logits(picture, FORCED) - right).abs().mean())
    assert 0 < error <= 1.1 * their_error


def test_teacher_forced_logits_are_as_near_to_float32_as_the_type_allows(
    checkpoint: Path,
) -> None:
    exact, half = load(checkpoint, "fast", "float32"), load(checkpoint, "fast", "bfloat16")
    for picture in PICTURES[:8]:
        right, mine = teacher_forced(exact, picture, FORCED), teacher_forced(half, picture, FORCED)
        # bfloat16 has 8 bits; the logits are sums over a few layers of such numbers.
        scale = 2**-8 * right.abs().max()
        assert (mine - right).abs().max() < 16 * scale
        assert (mine - right).abs().mean() < 4 * scale


def test_a_cpu_without_avx512_runs_the_plain_layers(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    half = load(checkpoint, "fast", "bfloat16")
    assert not any(isinstance(module, PackedLinear) for module in half.model.modules())
    wanted = greedy(load(checkpoint, "fast", "float32"))
    flips = sum(a != b for a, b in zip(wanted, greedy(half), strict=True))
    assert flips < len(PICTURES) / 4

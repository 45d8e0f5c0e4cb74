"""Samples follow the processed distribution, and each request draws from its own numbers."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BlipForConditionalGeneration
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from captioner.inference import Captioner, GenerationOptions, load_captioner
from captioner.inference.captions import Request
from captioner.inference.pixels import Picture, PixelSettings, normalise, resize
from captioner.inference.processors import warp
from captioner.inference.sampling import draw, uniform
from captioner.options.generation import REPETITION_PENALTIES, TEMPERATURES
from checkpoints import (
    DEC,
    IMAGE_SIZE,
    SEP,
    VOCABULARY,
    change_weights,
    random_picture,
    save_tiny_blip,
)

SAMPLES = 3


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


def test_no_number_draws_a_token_that_has_no_share_or_is_not_there() -> None:
    nearly = 1 - 2.0**-53
    scores = torch.tensor([[0.0, 1.0, 2.0, -math.inf], [-math.inf, 0.0, -math.inf, -math.inf]])
    assert draw(scores, torch.tensor([1.0, 1.0], dtype=torch.float64)).tolist() == [2, 1]
    for seed in range(20):
        scores = torch.randn(50, 1000, generator=torch.Generator().manual_seed(seed))
        drawn = draw(scores, torch.full((50,), nearly, dtype=torch.float64))
        assert drawn.max() < 1000
    assert draw(torch.full((1, 4), math.nan), torch.tensor([0.5], dtype=torch.float64)) < 4


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("penalty", REPETITION_PENALTIES)
def test_the_extremes_of_what_is_allowed_give_captions(
    fast: Captioner, temperature: float, penalty: float
) -> None:
    options = sampling(temperature=temperature, repetition_penalty=penalty, seed=1, top_p=0.9)
    images = [random_picture(seed) for seed in range(4)]
    assert all(math.isfinite(one[0].score) for one in fast.generate(images, options))


def test_a_cold_sample_is_the_greedy_caption(fast: Captioner) -> None:
    images = [random_picture(seed) for seed in range(6)]
    greedy = fast.generate(images, GenerationOptions(num_beams=1, max_new_tokens=6))
    cold = fast.generate(images, sampling(temperature=1e-4, seed=1))
    assert [one[0].token_ids for one in cold] == [one[0].token_ids for one in greedy]


@dataclass(frozen=True)
class Sample:
    #: [SEP] included where it was drawn.
    tokens: list[int]
    score: float

    @property
    def words(self) -> list[int]:
        return [token for token in self.tokens if token != SEP]


def mixed(rng: random.Random) -> GenerationOptions:
    longest = rng.choice([5, 9, 12])
    return sampling(
        prompt=rng.choice(["", "a picture of", "the woman ' s dog with a red boat"]),
        num_return_sequences=SAMPLES,
        max_new_tokens=longest,
        min_new_tokens=rng.choice([0, 0, 2, 4]),
        repetition_penalty=rng.choice([1.0, 1.3, 2.0]),
        no_repeat_ngram_size=rng.choice([0, 1, 2, 3]),
        temperature=rng.choice([0.7, 1.0, 1.5]),
        top_k=rng.choice([0, 5, 20]),
        top_p=rng.choice([1.0, 0.9, 0.6]),
        seed=rng.randrange(1000),
    )


def rules(options: GenerationOptions, prompt: int) -> list[LogitsProcessor]:
    """transformers' own, in its order."""
    found: list[LogitsProcessor] = [
        RepetitionPenaltyLogitsProcessor(options.repetition_penalty),
        MinNewTokensLengthLogitsProcessor(prompt, options.min_new_tokens, SEP),
        TemperatureLogitsWarper(options.temperature),
    ]
    if options.no_repeat_ngram_size:
        found.insert(1, NoRepeatNGramLogitsProcessor(options.no_repeat_ngram_size))
    if options.top_k:
        found.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        found.append(TopPLogitsWarper(options.top_p))
    return found


def replay(model: Any, picture: Picture, options: GenerationOptions) -> list[Sample]:
    """The samples in the order of their numbers, each drawn alone from transformers' model."""
    pixels = normalise(resize(picture, IMAGE_SIZE), PixelSettings(IMAGE_SIZE))
    states = model.vision_model(torch.from_numpy(pixels)[None].double()).last_hidden_state
    prompt = [DEC, *(VOCABULARY[word] for word in (options.prompt or "").split())]
    assert options.seed is not None
    numbers = uniform(Request((0,), tuple(prompt), options, options.seed))
    return [replay_one(model, states, prompt, options, column) for column in numbers.unbind(dim=1)]


def replay_one(
    model: Any,
    states: torch.Tensor,
    prompt: list[int],
    options: GenerationOptions,
    numbers: torch.Tensor,
) -> Sample:
    tokens, chosen = list[int](), list[float]()
    processors = rules(options, len(prompt))
    for number in numbers:
        ids = torch.tensor([prompt + tokens])
        output = model.text_decoder(
            input_ids=ids, attention_mask=torch.ones_like(ids), encoder_hidden_states=states
        )
        logits = scores = output.logits[:, -1].float()  # generate() makes float32 of them, too
        for processor in processors:
            scores = processor(ids, scores)
        shares = scores[0].double().softmax(-1).cumsum(-1)
        tokens.append(int((shares <= number).sum()))
        chosen.append(logits[0].log_softmax(-1)[tokens[-1]].item())
        if tokens[-1] == SEP:
            break
    return Sample(tokens, math.fsum(chosen) / len(chosen))


def test_every_sample_is_what_transformers_rules_and_the_requests_numbers_give(
    tmp_path: Path,
) -> None:
    """In one batch of mixed options; against samples that are drawn one by one."""
    folder = save_tiny_blip(tmp_path)
    rng = random.Random(0)
    images = [random_picture(seed) for seed in range(24)]
    options = [mixed(rng) for _ in images]
    model: Any = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float64)
    with torch.inference_mode():
        drawn = [replay(model, *one) for one in zip(images, options, strict=True)]
    wanted = [sorted(one, key=lambda sample: -sample.score) for one in drawn]
    fast = load_captioner(str(folder), device="cpu", dtype="float64", backend="fast")
    found = fast.generate(images, options)

    assert [[list(c.token_ids) for c in one] for one in found] == [
        [sample.words for sample in one] for one in wanted
    ]
    for ours, theirs in zip(itertools.chain(*found), itertools.chain(*wanted), strict=True):
        assert SEP not in ours.token_ids
        assert ours.score == pytest.approx(theirs.score, rel=1e-5)
    # Nothing would be shown by samples that all end together, are alike or in order by chance.
    of_unequal_length = [one for one in drawn if len({len(sample.tokens) for sample in one}) > 1]
    all_different = [
        one for one in drawn if len({tuple(sample.tokens) for sample in one}) == SAMPLES
    ]
    unordered = [one for one, best in zip(drawn, wanted, strict=True) if one != best]
    assert min(map(len, (of_unequal_length, all_different, unordered))) >= len(images) // 2
    assert {sample.tokens[-1] == SEP for sample in itertools.chain(*drawn)} == {True, False}


def test_what_follows_the_end_of_a_caption_does_not_count(tmp_path: Path) -> None:
    """Not even if it is no number: from the third position on, the first of these models has none.

    Captions that end before are taken along for as long as others of their image go on.
    """
    folders = [save_tiny_blip(tmp_path / name) for name in ("broken", "sound")]

    def break_positions(weights: dict[str, torch.Tensor]) -> None:
        weights["text_decoder.bert.embeddings.position_embeddings.weight"][3:] = float("inf")

    change_weights(folders[0], break_positions)
    broken, sound = (
        load_captioner(str(folder), device="cpu", dtype="float64", backend="fast")
        for folder in folders
    )
    ended = 0
    for seed in range(20):
        options = sampling(num_return_sequences=4, seed=seed)
        pictures = [random_picture(seed)]
        found, expected = (model.generate(pictures, options)[0] for model in (broken, sound))
        short = {one.token_ids: one.score for one in expected if len(one.token_ids) < 2}
        assert short.items() <= {one.token_ids: one.score for one in found}.items()
        ended += len(short)
    assert ended

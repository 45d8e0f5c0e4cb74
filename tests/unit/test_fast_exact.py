"""`backend="fast"` gives transformers' tokens: one image at a time there, mixed batches here."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.errors import ErrorCode, JobError
from captioner.inference import (
    Captioner,
    GeneratedCaption,
    GenerationOptions,
    load_captioner,
    unprojected,
)
from captioner.inference.attention import attend_few
from captioner.inference.captions import Generated
from captioner.inference.cuda_graphs import GraphRunner
from captioner.inference.fast import FastCaptioner
from checkpoints import random_picture, save_tiny_blip
from recorder import StandIn

PROMPTS = ("", "a picture of", "the woman ' s dog with a red boat", "a")
RELATIVE = 1e-5
Results = list[list[GeneratedCaption]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_blip(tmp_path_factory.mktemp("tiny"))


def load(folder: Path, backend: str, dtype: str = "float64") -> Captioner:
    return load_captioner(str(folder), device="cpu", dtype=dtype, backend=backend)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Captioner:
    return load(checkpoint, "transformers")


@pytest.fixture(scope="module", params=["projected", "unprojected", "recorded"])
def fast(checkpoint: Path, request: pytest.FixtureRequest) -> Iterator[Captioner]:
    """With keys and values of the images; with their states alone, as CPUs in bfloat16 do; or as on
    CUDA, where steps are replayed, and images that have ended go on until they are asked for.
    """
    model: Any = load(checkpoint, "fast")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "unprojected":
            patch.setattr(unprojected, "LEAST_IMAGES", 1)
            patch.setattr(unprojected, "MOST_CAPTIONS", 100)
            patch.setattr(unprojected, "MOST_PROMPT_TOKENS", 100)
            model._runner = unprojected.UnprojectedRunner(model.model)
            for layer in model.model.text.layers:
                layer.attend_image = unprojected.FewQueries(layer, attend_few)
        if request.param == "recorded":
            model._runner = GraphRunner(model.model, StandIn())
        yield model


def assert_equal(ours: Results, theirs: Results) -> None:
    assert [[c.token_ids for c in one] for one in ours] == [
        [c.token_ids for c in one] for one in theirs
    ]
    for mine, other in zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True):
        assert (mine.text, mine.continuation) == (other.text, other.continuation)
        assert mine.score == pytest.approx(other.score, rel=RELATIVE)
        assert (mine.beam_score is None) == (other.beam_score is None)
        assert (mine.beam_score or 0) == pytest.approx(other.beam_score or 0, rel=RELATIVE)


def pictures(count: int, first: int = 0) -> list[Any]:
    return [random_picture(seed) for seed in range(first, first + count)]


SUITES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "greedy, penalties": {"num_beams": 1, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "three beams": {"num_beams": 3, "num_return_sequences": 3},
    "five beams, penalties": {
        "num_beams": 5,
        "num_return_sequences": 5,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 3,
    },
    "favour long": {"num_beams": 3, "length_penalty": 2.0, "num_return_sequences": 3},
    "favour short": {"num_beams": 3, "length_penalty": -1.0, "repetition_penalty": 1.1},
    "no length penalty": {"num_beams": 3, "length_penalty": 0.0, "no_repeat_ngram_size": 1},
    "lengths beyond what scores tell apart": {
        "num_beams": 3,
        "length_penalty": 100.0,
        "num_return_sequences": 3,
        "max_new_tokens": 16,
    },
    "as short as it goes": {"num_beams": 3, "length_penalty": -3.0, "num_return_sequences": 3},
    "trigrams": {"num_beams": 2, "no_repeat_ngram_size": 3, "max_new_tokens": 16},
    "least length": {"num_beams": 3, "min_new_tokens": 8},
    "cut at once": {"num_beams": 3, "max_new_tokens": 1, "num_return_sequences": 2},
    "cut short": {"num_beams": 5, "max_new_tokens": 3, "num_return_sequences": 5},
    "greedy, cut at once": {"num_beams": 1, "max_new_tokens": 1},
}


@pytest.mark.parametrize("suite", SUITES)
def test_identical_in_float64(suite: str, reference: Captioner, fast: Captioner) -> None:
    values = {"max_new_tokens": 12} | SUITES[suite]
    options = [
        GenerationOptions(prompt=prompt, **values)
        for prompt, _ in zip(itertools.cycle(PROMPTS), range(16), strict=False)
    ]
    images = pictures(16)
    assert_equal(fast.generate(images, options), reference.generate(images, options))


def test_a_search_that_found_nothing_gives_an_empty_caption(fast: Any) -> None:
    """As with penalties that take all scores below transformers' -1e9: no error for the batch."""
    caption = fast._caption_of((1,), Generated((), 0.0, -1e9))
    assert (caption.text, caption.token_ids, caption.score) == ("", (), 0.0)


def mixed_options(rng: random.Random) -> GenerationOptions:
    beams, longest = rng.choice([1, 1, 2, 3, 3, 5]), rng.choice([1, 2, 6, 12, 16])
    return GenerationOptions(
        prompt=rng.choice(PROMPTS),
        num_beams=beams,
        max_new_tokens=longest,
        min_new_tokens=min(longest, rng.choice([0, 0, 1, 3, 6])),
        length_penalty=rng.choice([1, 1, 0, -1, 2, 0.5]),
        repetition_penalty=rng.choice([1, 1, 1.1, 1.3]),
        no_repeat_ngram_size=rng.choice([0, 0, 1, 2, 3]),
        num_return_sequences=rng.randint(1, beams),
    )


@pytest.mark.parametrize("seed", range(3))
def test_all_options_mixed_in_one_batch(seed: int, tmp_path: Path) -> None:
    folder = save_tiny_blip(tmp_path, seed=seed + 10)
    rng = random.Random(seed)
    images = pictures(24, first=100 * seed)
    options = [mixed_options(rng) for _ in images]
    ours = load(folder, "fast").generate(images, options)
    assert_equal(ours, load(folder, "transformers").generate(images, options))
    lengths = {len(one[0].token_ids) for one in ours}
    assert len(lengths) > 3  # nothing would be shown by captions that all run to the end


def test_an_end_at_the_first_step_and_at_none(tmp_path: Path) -> None:
    """The bias of [SEP] decides when captions end; both extremes must be alike, too."""
    from checkpoints import SEP, change_weights

    head = "text_decoder.cls.predictions.bias"
    for bias in (50.0, -50.0):
        folder = save_tiny_blip(tmp_path / str(bias))

        def shift(weights: dict[str, torch.Tensor], bias: float = bias) -> None:
            weights[head][SEP] = bias

        change_weights(folder, shift)
        images = pictures(4)
        ours, theirs = load(folder, "fast"), load(folder, "transformers")
        for beams in (1, 3):
            options = GenerationOptions(
                num_beams=beams, num_return_sequences=beams, max_new_tokens=6
            )
            found = ours.generate(images, options)
            assert_equal(found, theirs.generate(images, options))
            assert {len(one[0].token_ids) for one in found} == ({0} if bias > 0 else {6})


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_joint_captions_of_frames(frames: int, reference: Captioner, fast: Captioner) -> None:
    groups = [pictures(frames, first=10 * number) for number in range(4)]
    options = [
        GenerationOptions(num_beams=beams, num_return_sequences=beams, prompt=prompt)
        for beams, prompt in zip((1, 3, 3, 5), PROMPTS, strict=True)
    ]
    ours = fast.generate_joint(groups, options)
    assert_equal(ours, reference.generate_joint(groups, options))
    backwards = [group[::-1] for group in groups]
    assert_equal(fast.generate_joint(backwards, options), ours)  # frames have no order


def test_both_file_layouts_are_the_same_model(tmp_path: Path) -> None:
    images, options = pictures(4), GenerationOptions()
    found = [
        load(save_tiny_blip(tmp_path / layout, layout=layout), "fast").generate(images, options)
        for layout in ("transformers5", "hub")
    ]
    assert found[0] == found[1]


def test_float32_differs_only_where_transformers_itself_is_undecided(checkpoint: Path) -> None:
    """At most 0.2 % of captions, and those only with a deciding margin below 1e-4."""
    rng = random.Random(7)
    images = pictures(150, first=1000)
    options = [mixed_options(rng) for _ in images]
    ours = load(checkpoint, "fast", "float32").generate(images, options)
    theirs = load(checkpoint, "transformers", "float32").generate(images, options)
    exact = load(checkpoint, "transformers").generate(images, options)
    differing = [
        index
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True))
        if [c.token_ids for c in mine] != [c.token_ids for c in other]
    ]
    assert len(differing) <= 0.002 * len(images)
    for index in differing:  # float64 says that the two were as good as each other
        scores = [c.beam_score if c.beam_score is not None else c.score for c in exact[index]]
        mine = [c.beam_score if c.beam_score is not None else c.score for c in ours[index]]
        assert mine == pytest.approx(scores, abs=1e-4)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], list[list[int]], int]:
    """Which pictures, how they are split into batches, and a seed for their options."""
    members = draw(st.lists(st.integers(0, 30), min_size=1, max_size=8))
    order = draw(st.permutations(range(len(members))))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(members) - 1)))))
    edges = [0, *[cut for cut in cuts if cut < len(members)], len(members)]
    parts = [list(order[a:b]) for a, b in itertools.pairwise(edges)]
    return members, parts, draw(st.integers(0, 1000))


@settings(max_examples=25, deadline=None)
@given(batches())
def test_a_members_result_does_not_depend_on_its_batch(
    fast: Captioner, drawn: tuple[list[int], list[list[int]], int]
) -> None:
    members, parts, seed = drawn
    rng = random.Random(seed)
    images = [random_picture(member) for member in members]
    options = [sampled(rng) if rng.random() < 0.3 else mixed_options(rng) for _ in images]
    together = fast.generate(images, options)
    for part in parts:
        apart = fast.generate([images[i] for i in part], [options[i] for i in part])
        for index, one in zip(part, apart, strict=True):
            assert [c.token_ids for c in one] == [c.token_ids for c in together[index]]


def sampled(rng: random.Random) -> GenerationOptions:
    return GenerationOptions(
        prompt=rng.choice(PROMPTS),
        do_sample=True,
        num_beams=1,
        num_return_sequences=rng.randint(1, 3),
        temperature=rng.choice([0.7, 1.0, 1.5]),
        top_k=rng.choice([0, 5]),
        top_p=rng.choice([1.0, 0.8]),
        seed=rng.randrange(1000),
        max_new_tokens=8,
    )


def have_room(room: int, full: RuntimeError, patch: pytest.MonkeyPatch) -> list[int]:
    """From now on, batches of more pictures are too large; the list of what is tried."""
    sizes: list[int] = []
    real = FastCaptioner._caption_at_once

    def small(self: FastCaptioner, jobs: Sequence[Any]) -> Any:
        sizes.append(sum(len(job.pixels) for job in jobs))
        if sizes[-1] > room:
            raise full
        return real(self, jobs)

    patch.setattr(FastCaptioner, "_caption_at_once", small)
    return sizes


FULL = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1 bytes."
    ),
    RuntimeError("could not create a primitive"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("full", FULL, ids=["type", "cpu", "onednn", "cuda", "cublas"])
@pytest.mark.parametrize("room", [2, 0])
def test_out_of_memory_halves_the_batch_and_goes_on(
    fast: Captioner, monkeypatch: pytest.MonkeyPatch, room: int, full: RuntimeError
) -> None:
    """However PyTorch says it."""
    images, options = pictures(7), GenerationOptions(max_new_tokens=4)
    expected = fast.generate(images, options)
    sizes = have_room(room, full, monkeypatch)
    if room:
        assert fast.generate(images, options) == expected
        assert sizes == [7, 3, 1, 2, 4, 2, 2]
        return
    with pytest.raises(JobError, match=rf"^cpu is full: \w+: {re.escape(str(full))}") as raised:
        fast.generate(images, options)
    assert raised.value.code is ErrorCode.OUT_OF_MEMORY
    assert sizes == [7, 3, 1]


def test_pictures_together_are_not_parted_where_memory_is_short(
    fast: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [pictures(count, first=10 * count) for count in (5, 1, 2)]
    options = GenerationOptions(max_new_tokens=4)
    expected = fast.generate_joint(groups, options)
    sizes = have_room(5, torch.OutOfMemoryError("too much"), monkeypatch)
    assert fast.generate_joint(groups, options) == expected
    assert sizes == [8, 5, 3]
    monkeypatch.undo()
    have_room(4, torch.OutOfMemoryError("too much"), monkeypatch)
    with pytest.raises(JobError) as raised:
        fast.generate_joint(groups, options)
    assert raised.value.code is ErrorCode.OUT_OF_MEMORY


def test_another_error_is_raised_and_nothing_tried_again(
    fast: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def broken(self: Any, jobs: Sequence[Any]) -> Any:
        sizes.append(len(jobs))
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(FastCaptioner, "_caption_at_once", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fast.generate(pictures(4), GenerationOptions())
    assert sizes == [4]


@pytest.mark.parametrize("beams", [1, 3])
def test_as_many_frames_as_there_may_be_beside_two(
    beams: int, reference: Captioner, fast: Captioner
) -> None:
    # 65 in all: the encoder takes 32 at once, and the last one alone.
    groups = [pictures(32), pictures(2, first=50), pictures(31, first=60)]
    options = GenerationOptions(num_beams=beams, num_return_sequences=beams, max_new_tokens=8)
    ours = fast.generate_joint(groups, options)
    assert_equal(ours, reference.generate_joint(groups, options))
    fewer = fast.generate_joint([pictures(31)], options)
    assert fewer[0][0].score != pytest.approx(ours[0][0].score, rel=RELATIVE)  # the last one counts


@pytest.mark.parametrize("frames", [0, 33])
def test_no_frames_and_too_many_are_refused(
    frames: int, reference: Captioner, fast: Captioner
) -> None:
    for captioner in (fast, reference):
        with pytest.raises(JobError, match=f"1 to 32 pictures, not {frames}") as raised:
            captioner.generate_joint([pictures(2), pictures(frames)], GenerationOptions())
        assert raised.value.code is ErrorCode.INVALID_REQUEST


def words(count: int) -> str:
    """Each of them one piece."""
    return " ".join(itertools.islice(itertools.cycle(["red", "tree", "near", "boat"]), count))


@pytest.mark.parametrize("beams", [1, 3])
def test_prompts_of_all_lengths_up_to_the_last_position(
    beams: int, reference: Captioner, fast: Captioner
) -> None:
    """With [DEC], 62 words and a token, or 51 and 12, take all 64 positions of the model."""
    lengths = [(0, 12), (62, 1), (15, 12), (16, 12), (17, 12), (51, 12), (3, 5), (31, 20), (40, 12)]
    options = [
        GenerationOptions(
            prompt=words(count),
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=tokens,
            # Two run to the very end, whatever the model would say.
            min_new_tokens=tokens if count + tokens == 63 else 0,
        )
        for count, tokens in lengths
    ]
    images = pictures(len(lengths))
    ours = fast.generate(images, options)
    assert_equal(ours, reference.generate(images, options))
    assert [len(one[0].token_ids) for one in (ours[1], ours[5])] == [1, 12]
    too_long = GenerationOptions(prompt=words(52), max_new_tokens=12)
    with pytest.raises(JobError) as raised:
        fast.generate(images[:1], too_long)
    assert raised.value.code is ErrorCode.PROMPT_TOO_LONG

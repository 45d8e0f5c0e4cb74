"""The bookkeeping around CUDA graphs, with a stand-in that needs no CUDA."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captioner.errors import DeviceLostError
from captioner.inference import GenerationOptions, load_captioner
from captioner.inference import cuda_graphs as graphs
from captioner.inference.pixels import resize
from captioner.inference.recordings import Record
from checkpoints import POSITIONS, SEP, change_weights, random_picture, save_tiny_blip
from recorder import StandIn

PROMPTS = ("", "a picture of", "the woman ' s dog with a red boat", "a")
OPTIONS = GenerationOptions(max_new_tokens=8, num_return_sequences=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_blip(tmp_path_factory.mktemp("tiny"))


def load(folder: Path, record: Record | None = None, *, encoder: bool = False) -> Any:
    model: Any = load_captioner(str(folder), device="cpu", dtype="float64", backend="fast")
    if record is not None:
        model._runner = graphs.GraphRunner(model.model, record)
        model._runner._encoder._works = encoder
    return model


def pictures(count: int) -> list[Any]:
    return [random_picture(seed) for seed in range(count)]


def tokens(results: Any) -> list[list[tuple[int, ...]]]:
    return [[caption.token_ids for caption in one] for one in results]


def mixed_options(rng: random.Random) -> GenerationOptions:
    beams, longest = rng.choice([1, 1, 2, 3, 3, 9]), rng.choice([1, 6, 12, 16])
    return GenerationOptions(
        prompt=rng.choice(PROMPTS),
        num_beams=beams,
        max_new_tokens=longest,
        no_repeat_ngram_size=rng.choice([0, 0, 2]),
        num_return_sequences=rng.randint(1, beams),
    )


@pytest.mark.parametrize("seed", range(4))
def test_recordings_give_the_same_captions(folder: Path, seed: int) -> None:
    stand_in, rng = StandIn(), random.Random(seed)
    recorded, eager = load(folder, stand_in), load(folder)
    for size in (7, 1, 12, 5):  # growing and shrinking, on the same buffers and on new ones
        options = [mixed_options(rng) for _ in range(size)]
        images = [random_picture(rng.randrange(1000)) for _ in options]
        assert tokens(recorded.generate(images, options)) == tokens(eager.generate(images, options))
    assert stand_in.replayed > 2 * stand_in.recorded > 0


def test_a_recording_serves_every_later_batch_of_its_size(folder: Path) -> None:
    stand_in = StandIn()
    model = load(folder, stand_in)
    model.generate(pictures(8), OPTIONS)
    before = stand_in.recorded
    for prompt in PROMPTS:
        options = GenerationOptions(prompt=prompt, max_new_tokens=6)
        assert tokens(model.generate(pictures(8), options)) == tokens(
            load(folder).generate(pictures(8), options)
        )
    # Steps of eight images and of what was left when some had ended; beginnings with and without
    # a prompt.
    assert stand_in.recorded <= before + 3
    assert stand_in.recorded <= 6


def test_sampling_and_joint_captions(folder: Path) -> None:
    sampling = GenerationOptions(
        num_beams=1, do_sample=True, num_return_sequences=4, seed=3, max_new_tokens=8
    )
    groups = [pictures(2), pictures(3), pictures(2)]
    recorded, eager = load(folder, StandIn()), load(folder)
    assert tokens(recorded.generate(pictures(5), sampling)) == tokens(
        eager.generate(pictures(5), sampling)
    )
    assert tokens(recorded.generate_joint(groups, OPTIONS)) == tokens(
        eager.generate_joint(groups, OPTIONS)
    )


def test_what_one_batch_leaves_behind_does_not_reach_the_next(folder: Path) -> None:
    model = load(folder, StandIn())
    expected = model.generate(pictures(3), OPTIONS)
    with torch.inference_mode():  # where the buffers were made
        for buffers in model._runner._kept.values():
            for part in buffers.cache.everything():
                for tensor in part:
                    tensor.fill_(float("nan"))
    assert model.generate(pictures(3), OPTIONS) == expected


@pytest.mark.parametrize("limit", ["_MOST_STATES", "_MOST_CAPTIONS"])
def test_what_does_not_fit_runs_eagerly(
    folder: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, limit, 2)
    stand_in = StandIn()
    results = load(folder, stand_in).generate(pictures(5), OPTIONS)
    assert results == load(folder).generate(pictures(5), OPTIONS)
    assert stand_in.recorded == 0


def test_few_sets_of_buffers_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_MOST_BUFFERS", 2)
    model = load(folder, StandIn())
    for beams in (1, 2, 3, 1, 4):
        model.generate(pictures(2), GenerationOptions(num_beams=beams, max_new_tokens=4))
    assert [key[0] for key in model._runner._kept] == [1, 4]
    model._runner.release()
    assert not model._runner._kept


def test_buffers_of_many_images_are_kept_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_MOST_STATES", 8 * 17)
    model = load(folder, StandIn())

    def kept_after(images: int, beams: int) -> list[tuple[int, int]]:
        options = GenerationOptions(num_beams=beams, max_new_tokens=4)
        model.generate(pictures(images), options)
        return [(key[0], len(one.states)) for key, one in model._runner._kept.items()]

    assert model.model.vision.positions.shape[0] == 17
    assert kept_after(2, 1) == [(1, 2)]
    assert kept_after(4, 2) == [(1, 2), (2, 4)]
    assert kept_after(2, 3) == [(1, 2), (2, 4), (3, 2)]
    assert kept_after(4, 4) == [(3, 2), (4, 4)]
    assert kept_after(7, 2) == [(2, 8)]
    assert kept_after(1, 1) == [(1, 1)]


def fails(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    raise RuntimeError("operation not permitted when stream is capturing")


def stale(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """A recording that runs on nothing."""
    return (lambda: None), run().clone()


@pytest.mark.parametrize("record", [fails, stale])
def test_a_recording_that_does_not_work_is_never_tried_again(
    folder: Path, record: Record, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(folder, record)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            results = model.generate(pictures(5), OPTIONS)
            assert results == load(folder).generate(pictures(5), OPTIONS)
    assert [record.getMessage() for record in caplog.records if "CUDA graphs" in record.msg]
    assert len(caplog.records) == 1
    assert not model._runner._kept


def test_too_little_memory_for_buffers_is_no_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, stand_in = load(folder).generate(pictures(5), OPTIONS), StandIn()
    model = load(folder, stand_in)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(graphs, "_Buffers", full)
        assert model.generate(pictures(5), OPTIONS) == expected
    assert stand_in.recorded == 0
    assert model.generate(pictures(5), OPTIONS) == expected
    assert stand_in.recorded > 0


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_the_encoder_of_few_images_is_recorded(folder: Path, count: int) -> None:
    stand_in = StandIn()
    model = load(folder, stand_in, encoder=True)
    expected = load(folder).generate(pictures(count), OPTIONS)
    with torch.inference_mode():
        for _ in range(2):  # the second time on the recording
            pixels = model.model_input([resize(one, model._pixels.size) for one in pictures(count)])
            states = model._runner.encode(pixels)
            before = states.clone()
            model._runner.encode(pixels * 0)
            assert torch.equal(states, before)
            # A recording is of 1, 2, 4 or 8 images: products of other shapes may add up in another
            # order, in float64 as in any type.
            wanted = model.model.vision(pixels)
            torch.testing.assert_close(states, wanted, rtol=1e-12, atol=1e-12)
    assert stand_in.recorded == (count <= 8)
    assert model.generate(pictures(count), OPTIONS) == expected


@pytest.mark.parametrize("record", [fails, stale])
def test_an_encoder_that_cannot_be_recorded_encodes(
    folder: Path, record: Record, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(folder, record, encoder=True)
    model._runner._works = False
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            results = model.generate(pictures(3), OPTIONS)
            assert results == load(folder).generate(pictures(3), OPTIONS)
    assert [one.msg for one in caplog.records] == ["encoding without CUDA graphs: %s"]


def test_prompts_of_many_lengths_share_recordings(folder: Path) -> None:
    stand_in = StandIn()
    model, eager = load(folder, stand_in), load(folder)
    for length in range(1, 8):
        options = GenerationOptions(prompt="a " * length, max_new_tokens=4, num_beams=3)
        assert model.generate(pictures(2), options) == eager.generate(pictures(2), options)
    # The beginning and the steps of two images; and of one, where the other had ended.
    assert stand_in.recorded <= 3


def test_recordings_do_not_pile_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_MOST_RECORDINGS", 3)
    model, eager = load(folder, StandIn()), load(folder)
    for count in (1, 2, 4, 8, 1, 3):
        assert tokens(model.generate(pictures(count), OPTIONS)) == tokens(
            eager.generate(pictures(count), OPTIONS)
        )
        assert all(len(one.recordings) <= 3 for one in model._runner._kept.values())


@pytest.mark.parametrize(
    "batches",
    [
        # Rows that an earlier batch has left behind, counted on from its long prompts.
        [[(POSITIONS - 25, 24)] * 4, [(0, POSITIONS - 1)] * 3],
        # A row whose image has ended and left.
        [[(0, POSITIONS - 1)] * 3 + [(14, POSITIONS - 15)]],
        # An image that has ended, until it is asked whether it has.
        [[(14, POSITIONS - 15), (0, POSITIONS - 1)]],
    ],
)
def test_positions_that_are_not_there_are_never_read(
    tmp_path: Path, batches: list[list[tuple[int, int]]]
) -> None:
    """On CUDA that would end the process: there an index out of range cannot be caught."""
    folder = save_tiny_blip(tmp_path)
    change_weights(folder, never_end)
    recorded, eager = load(folder, StandIn()), load(folder)
    for batch in batches:
        options = [
            GenerationOptions(prompt="a " * words, num_beams=1, max_new_tokens=longest)
            for words, longest in batch
        ]
        images = pictures(len(batch))
        assert tokens(recorded.generate(images, options)) == tokens(eager.generate(images, options))


def test_an_error_of_the_device_is_no_answer_of_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folder)

    tried: list[int] = []

    def broken(jobs: list[Any]) -> None:
        tried.append(len(jobs))
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(model, "_caption_at_once", broken)
    with pytest.raises(DeviceLostError, match=r"^cpu cannot go on: .*device-side assert triggered"):
        model.generate(pictures(2), OPTIONS)
    assert tried == [2]  # and no half of it: there is no use


def never_end(weights: dict[str, Tensor]) -> None:
    weights["text_decoder.cls.predictions.bias"][SEP] = -50.0

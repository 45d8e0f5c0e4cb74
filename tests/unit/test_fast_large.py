"""`backend="fast"` gives transformers' tokens at the sizes of the published BLIP-large, too.

What depends on a size shows at no other: strides, scales, fused weights cut at the wrong width.
Random weights, so that nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from captioner.cores import available_cores
from captioner.inference import (
    Captioner,
    GeneratedCaption,
    GenerationOptions,
    load_captioner,
    unprojected,
)
from captioner.inference.benchmark import make_blip_large, random_weights
from captioner.inference.benchmark.agreement import judge
from captioner.inference.benchmark.sides import Ours, Theirs
from captioner.inference.checkpoint import open_checkpoint
from captioner.inference.pixels import resize
from checkpoints import change_weights, random_picture

pytestmark = pytest.mark.long

PUBLISHED = random_weights._CONFIG
SIDE = PUBLISHED["vision_config"]["image_size"]
SEP = PUBLISHED["text_config"]["sep_token_id"]
TOKENS = 8
Results = list[list[GeneratedCaption]]


@pytest.fixture(autouse=True, scope="module")
def all_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(available_cores())
    yield
    torch.set_num_threads(before)


@contextlib.contextmanager
def large_blip(folder: Path, *, layers: int | None = None) -> Iterator[Path]:
    """A checkpoint of the published sizes, taken away again: pytest keeps folders for three runs.

    Args:
        folder: where; not there yet.
        layers: of the encoder and of the decoder; as published without.
    """
    with pytest.MonkeyPatch.context() as patch:
        depth = {} if layers is None else {"num_hidden_layers": layers}
        parts = {name: PUBLISHED[name] | depth for name in ("vision_config", "text_config")}
        patch.setattr(random_weights, "_CONFIG", PUBLISHED | parts)
        patch.setattr(random_weights, "_DEVIATION", 0.04)
        make_blip_large(folder)
    try:
        change_weights(folder, liven)
        yield folder
    finally:
        shutil.rmtree(folder)


def liven(tensors: dict[str, torch.Tensor]) -> None:
    """No bias is 0 and no norm 1, and captions do not repeat one token for ever.

    They do where what the layers add drowns the token and its position.
    """
    generator = torch.Generator().manual_seed(1)
    layers = sum(name.endswith("crossattention.output.dense.bias") for name in tensors)
    for name, tensor in tensors.items():
        if name.endswith("bias"):
            tensor.normal_(0, 0.1, generator=generator)
        elif "norm" in name.lower():
            tensor.normal_(1, 0.1, generator=generator)
        elif name.endswith("position_embeddings.weight"):
            tensor.mul_(2)
        elif name.startswith("text_decoder") and name.endswith("output.dense.weight"):
            tensor.div_(layers)
    tensors["text_decoder.cls.predictions.bias"][SEP] += 3  # some captions end by themselves


def pictures(count: int) -> list[Any]:
    return [random_picture(seed, height=300, width=410) for seed in range(count)]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Captioner, Captioner]]:
    """Ours and transformers', in float64, of two layers each."""
    with large_blip(tmp_path_factory.mktemp("large") / "model", layers=2) as folder:
        ours, theirs = (
            load_captioner(str(folder), device="cpu", dtype="float64", backend=backend)
            for backend in ("fast", "transformers")
        )
        yield ours, theirs
        ours.close()
        theirs.close()


def assert_equal(ours: Results, theirs: Results) -> None:
    assert [[c.token_ids for c in one] for one in ours] == [
        [c.token_ids for c in one] for one in theirs
    ]
    for mine, other in zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True):
        assert (mine.text, mine.continuation) == (other.text, other.continuation)
        assert mine.score == pytest.approx(other.score, rel=1e-6)
        assert (mine.beam_score is None) == (other.beam_score is None)
        assert (mine.beam_score or 0) == pytest.approx(other.beam_score or 0, rel=1e-6)


@pytest.mark.parametrize("prompt", ["", "a photo of"])
@pytest.mark.parametrize("beams", [1, 3])
def test_identical_at_the_published_widths(
    beams: int, prompt: str, both: tuple[Captioner, Captioner]
) -> None:
    options = GenerationOptions(
        prompt=prompt,
        num_beams=beams,
        num_return_sequences=beams,
        min_new_tokens=3,  # enough that captions which end by themselves differ
        max_new_tokens=TOKENS,
    )
    ours, theirs = (captioner.generate(pictures(3), options) for captioner in both)
    assert_equal(ours, theirs)
    best = [one[0].token_ids for one in ours]
    assert len(set(best)) == len(best)
    assert len({len(one.token_ids) for one in itertools.chain(*ours)}) > 1


def test_mixed_options_and_joint_frames_at_the_published_widths(
    both: tuple[Captioner, Captioner],
) -> None:
    options = [
        GenerationOptions(num_beams=5, num_return_sequences=5, max_new_tokens=TOKENS),
        GenerationOptions(
            prompt="a photo of",
            repetition_penalty=1.3,
            no_repeat_ngram_size=2,
            min_new_tokens=5,
            max_new_tokens=TOKENS,
        ),
        GenerationOptions(prompt="there", num_beams=1, max_new_tokens=2),
        GenerationOptions(length_penalty=-1.0, max_new_tokens=1),
    ]
    ours, theirs = (captioner.generate(pictures(4), options) for captioner in both)
    assert_equal(ours, theirs)
    groups = [pictures(3), pictures(2)]
    ours, theirs = (captioner.generate_joint(groups, options[:2]) for captioner in both)
    assert_equal(ours, theirs)


def test_whole_depth_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens may differ only where `judge` finds a near-tie: a margin of at most some 1e-4."""
    options = [
        GenerationOptions(num_beams=beams, max_new_tokens=TOKENS, min_new_tokens=TOKENS)
        for beams in (1, 3)
    ]
    pixels = [resize(picture, SIDE) for picture in pictures(2)]
    with large_blip(tmp_path / "model") as folder:
        checkpoint, place = open_checkpoint(str(folder)), torch.device("cpu")
        theirs = Theirs(checkpoint, device=place, dtype=torch.float32)
        traces = theirs.trace(pixels, options)
        theirs.close()
        ours = Ours(checkpoint, device=place, dtype=torch.float32)
        for one, trace in zip(options, traces, strict=True):
            # Image states projected, and as they are.
            least = len(pixels) + 1 if one.num_beams == 1 else len(pixels)
            monkeypatch.setattr(unprojected, "LEAST_IMAGES", least)
            said = ours.caption(pixels, one)
            verdict = judge(trace, ours.follow(pixels, one, trace), said)
            assert all(trace.retraced)
            assert verdict.unexplained_flips == 0
            assert verdict.greatest_difference < 3e-5
            assert len(set(trace.captions)) == len(pixels)
            assert min(len(set(caption)) for caption in trace.captions) > TOKENS // 2

"""The shipped demo model: right captions, and the hub's format in every trap."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import AutoProcessor, AutoTokenizer, BlipForConditionalGeneration

from captioner.demo import MODEL_PATH
from captioner.demo.accuracy import Accuracy, main, measure
from captioner.demo.scenes import draw, scenes
from captioner.inference import Captioner, GenerationOptions, load_captioner

LEAST_RIGHT = 0.995


@pytest.fixture(scope="module")
def captioner() -> Iterator[Captioner]:
    captioner = load_captioner("demo", device="cpu", dtype="float32")
    yield captioner
    captioner.close()


@pytest.mark.long
@pytest.mark.parametrize("prompt", [None, "a picture of", "a photography of"])
def test_995_of_1000_unseen_scenes_are_captioned_exactly_right(
    captioner: Captioner, prompt: str | None
) -> None:
    found = measure(captioner, count=1000, prompt=prompt)
    assert found.share >= LEAST_RIGHT, found.wrong


def both_backends(dtype: str, count: int, seed: int) -> tuple[Accuracy, Accuracy]:
    """What each gets wrong; where that is the same, all captions are: the others are the truth."""
    found = []
    for backend in ("fast", "transformers"):
        captioner = load_captioner("demo", device="cpu", dtype=dtype, backend=backend)
        found.append(measure(captioner, count=count, seed=seed))
        captioner.close()
    fast, reference = found
    return fast, reference


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_both_backends_caption_alike_in_every_type(dtype: str) -> None:
    """Half types as well: the model is so sure of its words that rounding changes none."""
    fast, reference = both_backends(dtype, count=500, seed=5)
    assert fast.wrong == reference.wrong
    assert fast.right >= 498


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_backends_caption_a_few_scenes_right(dtype: str) -> None:
    fast, reference = both_backends(dtype, count=40, seed=5)
    assert (fast.wrong, reference.wrong) == ((), ())


def test_a_wrong_caption_is_counted_as_wrong() -> None:
    class Parrot:
        def generate(self, images: Any, options: GenerationOptions, /) -> Any:
            return [[type("Said", (), {"text": "a red circle"})] for _ in images]

    found = measure(Parrot(), count=40)
    assert (found.count, found.right, len(found.wrong)) == (40, 0, 40)


def test_the_command_measures(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--scenes", "20", "--json", "--backend", "transformers"])
    assert json.loads(capsys.readouterr().out)["count"] == 20


def test_it_is_small_and_readable_by_all() -> None:
    files = list(MODEL_PATH.iterdir())
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    assert {file.name for file in files} >= {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "vocab.txt",
    }
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in files)


def test_transformers_loads_it_with_the_hubs_traps() -> None:
    load: Any = AutoTokenizer.from_pretrained
    tokenizer = load(MODEL_PATH)
    assert "[DEC]" not in tokenizer.get_vocab()
    model: Any = BlipForConditionalGeneration.from_pretrained(MODEL_PATH)
    text = model.config.text_config
    assert (text.bos_token_id, text.vocab_size) == (len(tokenizer), len(tokenizer) + 2)
    assert text.max_position_embeddings == 64
    processor_of: Any = AutoProcessor.from_pretrained
    processor = processor_of(MODEL_PATH)
    scene = next(iter(scenes(3, 1)))
    inputs = processor(images=draw(scene), text="a photography of", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=20)
    said = processor.decode(ids[0], skip_special_tokens=True)
    assert said == f"a photography of {scene.caption}"

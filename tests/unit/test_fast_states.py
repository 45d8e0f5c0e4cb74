"""`backend="fast"` computes transformers' hidden states, and does no work twice for them.

A wrong epsilon of one layer changes captions never and scores too little. In float64, states differ
by 1e-14 where all is right, and by 1e-6 or more where a single epsilon is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captioner.inference import GenerationOptions, load_captioner
from captioner.inference.attention import attend_few
from captioner.inference.blip import Tokens
from captioner.inference.decoding import without
from captioner.inference.pixels import normalise, resize
from captioner.inference.unprojected import FewQueries
from checkpoints import DEC, change_json, random_picture, save_tiny_blip

PICTURES = [random_picture(seed) for seed in range(3)]
IDS = [[DEC, 5, 9, 17, 30, 2], [DEC, 40, 11, 0, 22, 7], [DEC, 30, 30, 5, 3, 6]]
States = dict[str, torch.Tensor]


def load(folder: Path, backend: str) -> Any:
    return load_captioner(str(folder), device="cpu", dtype="float64", backend=backend)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_blip(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def fast(checkpoint: Path) -> Any:
    return load(checkpoint, "fast")


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> States:
    return reference_states(load(checkpoint, "transformers"))


def reference_states(reference: Any) -> States:
    """All pictures at once: nothing is padded, and so transformers' batches are right."""
    model, settings = reference.model, reference.pixels
    pixels = [normalise(resize(one, settings.size), settings) for one in PICTURES]
    batch = torch.stack([torch.from_numpy(one) for one in pixels]).double()
    ids = torch.tensor(IDS)
    with torch.inference_mode():
        image = model.vision_model(pixel_values=batch).last_hidden_state
        text = model.text_decoder.bert(
            ids,
            attention_mask=torch.ones_like(ids),
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long),
            is_decoder=True,
        ).last_hidden_state
        return {"image": image, "text": text, "logits": model.text_decoder.cls(text)}


def fast_states(fast: Any, *, projected: bool = True) -> States:
    decoder, length = fast.model.text, len(IDS[0])
    logits: list[torch.Tensor] = []  # before `TextDecoder.logits` rounds them to float32
    hook = decoder.lm_head.register_forward_hook(lambda *given: logits.append(given[2]))
    with torch.inference_mode():
        image = fast._encode([resize(one, fast._pixels.size) for one in PICTURES])
        cache = decoder.new_cache(image, length, projected=projected)
        decoder.project_image(image, cache)
        mask = torch.full((1, 1, length, length), float("-inf"), dtype=image.dtype).triu(1)
        slots = torch.arange(length)
        text = decoder(Tokens(torch.tensor(IDS), slots[None], slots, mask), cache)
        decoder.logits(text)
    hook.remove()
    (exact,) = logits
    return {"image": image, "text": text, "logits": exact}


def differing(ours: States, theirs: States, tolerance: float = 1e-10) -> set[str]:
    return {
        name
        for name, wanted in theirs.items()
        if not torch.allclose(ours[name], wanted, rtol=0, atol=tolerance)
    }


def test_all_states_are_equal_in_float64(fast: Any, expected: States) -> None:
    ours = fast_states(fast)
    assert all(state.dtype == torch.float64 for state in (*ours.values(), *expected.values()))
    assert differing(ours, expected) == set()


def test_states_are_equal_where_images_are_not_projected(fast: Any, expected: States) -> None:
    for layer in fast.model.text.layers:
        layer.attend_image = FewQueries(layer, attend_few)
    # Made for bfloat16, its softmax is float32 in every type: 3e-7 were measured.
    assert differing(fast_states(fast, projected=False), expected, tolerance=1e-5) == set()


NORMS = [
    *[
        f"vision.layers.{k}.{name}"
        for k in (0, 1)
        for name in ("norm_attention", "norm_perceptron")
    ],
    "vision.norm",
    "text.norm",
    *[
        f"text.layers.{k}.{name}"
        for k in (0, 1)
        for name in ("norm_attention", "norm_image", "norm_perceptron")
    ],
    "text.norm_transform",
]


def test_no_norm_is_left_out(fast: Any) -> None:
    found = [
        name
        for name, module in fast.model.named_modules()
        if isinstance(module, torch.nn.LayerNorm)
    ]
    assert sorted(found) == sorted(NORMS)


@pytest.mark.parametrize("name", NORMS)
def test_a_wrong_epsilon_in_any_norm_is_found(name: str, fast: Any, expected: States) -> None:
    norm = fast.model.get_submodule(name)
    norm.eps = 1e-6 if name.startswith("vision") else 1e-5
    affected = {"image", "text", "logits"} if name.startswith("vision") else {"text", "logits"}
    if name == "text.norm_transform":
        affected = {"logits"}
    assert differing(fast_states(fast), expected) == affected


@pytest.mark.parametrize(
    ("half", "epsilon"), [("vision_config", 1e-6), ("text_config", 1e-5), ("text_config", 1e-3)]
)
def test_the_checkpoints_own_epsilon_counts(
    half: str, epsilon: float, expected: States, tmp_path: Path
) -> None:
    folder = save_tiny_blip(tmp_path)
    change_json(folder / "config.json", lambda c: c[half].update(layer_norm_eps=epsilon))
    theirs = reference_states(load(folder, "transformers"))
    assert differing(theirs, expected) >= {"text", "logits"}  # it is not the default
    assert differing(fast_states(load(folder, "fast")), theirs) == set()


def test_states_of_an_image_are_projected_once_for_all_beams(fast: Any) -> None:
    calls: dict[int, list[torch.Size]] = {}
    for index, layer in enumerate(fast.model.text.layers):
        layer.image_key_value.register_forward_hook(
            lambda _module, given, _out, index=index: calls.setdefault(index, []).append(
                given[0].shape
            )
        )
    images = [random_picture(seed) for seed in range(5)]
    options = GenerationOptions(num_beams=3, num_return_sequences=3, max_new_tokens=6)
    fast.generate(images, options)
    states = fast.model.vision.positions.shape
    assert calls == {0: [(5, *states)], 1: [(5, *states)]}


@pytest.mark.parametrize("beams", [1, 3])
def test_images_that_are_finished_are_not_read_any_more(fast: Any, beams: int) -> None:
    read: list[tuple[int, ...]] = []
    hook = fast.model.text.register_forward_pre_hook(
        lambda _module, given: read.append(tuple(given[0].ids.shape))
    )
    lengths = [2, 6, 1, 4, 3, 6, 1]
    images = [random_picture(seed) for seed in range(len(lengths))]
    options = [
        GenerationOptions(num_beams=beams, min_new_tokens=length, max_new_tokens=length)
        for length in lengths
    ]
    together = fast.generate(images, options)
    hook.remove()
    # [DEC] of all of them, and then the newest tokens of those that go on.
    going = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert read == [(len(lengths), 1), *[(count, beams) for count in going]]
    assert going == [5, 4, 3, 2, 2]
    # Others have moved into the gaps; captions are still those of their own pictures.
    alone = [fast.generate([image], one)[0] for image, one in zip(images, options, strict=True)]
    assert [[c.token_ids for c in one] for one in together] == [
        [c.token_ids for c in one] for one in alone
    ]
    assert [len(one[0].token_ids) for one in together] == lengths


@given(st.lists(st.booleans()))
def test_who_goes_on_stays_in_place_where_that_can_be(finished: Sequence[bool]) -> None:
    kept = without(finished)
    assert sorted(kept) == [image for image, ended in enumerate(finished) if not ended]
    for image in kept:
        if image < len(kept):
            assert kept[image] == image

"""The reference backend against `BlipForConditionalGeneration.generate`, called directly."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, BlipForConditionalGeneration

from captioner.errors import (
    DeviceLostError,
    ErrorCode,
    InvalidRequestError,
    JobError,
    ModelLoadError,
    SettingsError,
)
from captioner.inference import Captioner, GeneratedCaption, GenerationOptions, load_captioner
from captioner.inference.captioner import BACKENDS
from captioner.options import PAPER
from captioner.settings import ModelSettings
from checkpoints import (
    DEC,
    POSITIONS,
    SEP,
    change_json,
    random_picture,
    save_tiny_blip,
    write_json,
)

_IMAGES = [random_picture(seed, 30 + 3 * seed, 70 - 2 * seed) for seed in range(8)]
_GREEDY = GenerationOptions(num_beams=1, max_new_tokens=12)
_SAMPLED = GenerationOptions(num_beams=1, do_sample=True, seed=7, max_new_tokens=12)
_PROMPTS = ["", "a picture of", "a photography of", "the woman ' s dog with a red boat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_blip(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def captioner(folder: Path) -> Captioner:
    return load_captioner(str(folder), device="cpu", dtype="float32", backend="transformers")


@dataclass
class Direct:
    """transformers as its own documentation uses it, one image at a time."""

    model: Any
    tokenizer: Any
    processor: Any

    @torch.inference_mode()
    def generate(self, image: NDArray[np.uint8], prompt: str = "", **settings: Any) -> Any:
        inputs = self.processor(images=Image.fromarray(image), return_tensors="pt")
        if prompt:
            inputs |= self.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        return self.model.generate(
            **inputs, return_dict_in_generate=True, output_scores=True, **settings
        )

    @torch.inference_mode()
    def log_probabilities(self, image: NDArray[np.uint8], ids: list[int]) -> torch.Tensor:
        """`[len(ids), vocabulary]`: of the token after each id, every id seen at once."""
        pixels = self.processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"]
        states = self.model.vision_model(pixel_values=pixels)[0]
        output = self.model.text_decoder(torch.tensor([ids]), encoder_hidden_states=states)
        logits: torch.Tensor = output.logits[0]
        return logits.double().log_softmax(-1)

    def generated(self, row: list[int], prompt: str) -> list[int]:
        """The new tokens of one row of `sequences`, [SEP] and padding cut off."""
        new = row[1 + len(self.tokenizer(prompt, add_special_tokens=False)["input_ids"]) :]
        return new[: new.index(SEP)] if SEP in new else new


@pytest.fixture(scope="module")
def direct(folder: Path) -> Direct:
    return Direct(
        BlipForConditionalGeneration.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        AutoImageProcessor.from_pretrained(folder, backend="pil"),  # type: ignore[no-untyped-call]
    )


@pytest.mark.parametrize("prompt", _PROMPTS)
@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 1, "max_new_tokens": 12},
        {"num_beams": 1, "max_new_tokens": 9, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
        {"num_beams": 1, "max_new_tokens": 6, "min_new_tokens": 6},
        {"num_beams": 1, "max_new_tokens": 1},
        {"num_beams": 3, "max_new_tokens": 12},
        {"num_beams": 5, "max_new_tokens": 10, "num_return_sequences": 5, "length_penalty": 2.0},
        {"num_beams": 3, "max_new_tokens": 8, "num_return_sequences": 2, "length_penalty": -1.0},
        {
            "num_beams": 3,
            "max_new_tokens": 8,
            "min_new_tokens": 3,
            "repetition_penalty": 1.2,
            "no_repeat_ngram_size": 1,
        },
    ],
)
def test_equals_transformers(
    captioner: Captioner, direct: Direct, prompt: str, settings: dict[str, Any]
) -> None:
    options = GenerationOptions(prompt=prompt, **settings)
    images = _IMAGES[:4]
    for image, captions in zip(images, captioner.generate(images, options), strict=True):
        expected = direct.generate(image, prompt, **settings)
        rows = [direct.generated(row, prompt) for row in expected.sequences.tolist()]
        assert [list(caption.token_ids) for caption in captions] == rows
        for caption, row in zip(captions, expected.sequences, strict=True):
            text = direct.tokenizer.decode(
                row, skip_special_tokens=True, clean_up_tokenization_spaces=True
            )
            assert caption.text == text
        if options.num_beams > 1:
            scores = pytest.approx(expected.sequences_scores.tolist(), rel=1e-5)
            assert [caption.beam_score for caption in captions] == scores
        else:
            assert captions[0].beam_score is None


def test_the_pictures_tell_captions_apart(captioner: Captioner) -> None:
    """Without this, equality would prove little."""
    captions = [result[0] for result in captioner.generate(_IMAGES, _GREEDY)]
    assert len({caption.token_ids for caption in captions}) >= 6
    lengths = {len(caption.token_ids) for caption in captions}
    assert min(lengths) < 12
    assert max(lengths) == 12


@pytest.mark.parametrize(
    "options",
    [
        replace(_GREEDY, max_new_tokens=12, repetition_penalty=1.5, no_repeat_ngram_size=2),
        GenerationOptions(num_beams=4, num_return_sequences=4, repetition_penalty=1.5),
        GenerationOptions(num_beams=3, length_penalty=-2.0, min_new_tokens=4, max_new_tokens=8),
        replace(_SAMPLED, num_return_sequences=5, temperature=2.0, top_k=5, top_p=0.9),
    ],
    ids=["greedy", "beams", "short", "sampling"],
)
@pytest.mark.parametrize("prompt", ["", "a photography of"])
def test_score_is_the_mean_log_probability_before_any_processing(
    captioner: Captioner, direct: Direct, options: GenerationOptions, prompt: str
) -> None:
    start = [DEC, *direct.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    ended = set()
    for image, captions in zip(
        _IMAGES, captioner.generate(_IMAGES, replace(options, prompt=prompt)), strict=True
    ):
        for caption in captions:
            ends = len(caption.token_ids) < options.max_new_tokens
            new = [*caption.token_ids, SEP] if ends else list(caption.token_ids)
            following = direct.log_probabilities(image, [*start, *new[:-1]])[len(start) - 1 :]
            mean = following[torch.arange(len(new)), torch.tensor(new)].mean().item()
            assert caption.score == pytest.approx(mean, rel=1e-5)
            ended.add(ends)
    assert True in ended


def test_beam_score_is_the_mean_when_nothing_is_processed(captioner: Captioner) -> None:
    for (best,) in captioner.generate(_IMAGES, GenerationOptions(max_new_tokens=8)):
        assert best.beam_score == pytest.approx(best.score, rel=1e-5)


def test_mixed_prompts_in_one_call_equal_single_calls(captioner: Captioner) -> None:
    options = [
        GenerationOptions(prompt=prompt, num_beams=beams, max_new_tokens=4 + beams)
        for prompt in _PROMPTS
        for beams in (1, 3)
    ]
    together = captioner.generate(_IMAGES, options)
    assert together == [
        captioner.generate([image], one)[0] for image, one in zip(_IMAGES, options, strict=True)
    ]
    assert len({result[0].text for result in together}) == len(_IMAGES)


def test_text_and_continuation(captioner: Captioner, direct: Direct) -> None:
    prompt = "The Woman's Dog, NOT"
    for (best,) in captioner.generate(_IMAGES, GenerationOptions(prompt=prompt)):
        assert best.text.startswith("the woman's dog, not")
        assert best.continuation == direct.tokenizer.decode(
            list(best.token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=True
        )
    for (best,) in captioner.generate(_IMAGES, GenerationOptions()):
        assert best.text == best.continuation


@pytest.mark.parametrize("prompt", [None, "", "  \n"])
def test_an_empty_prompt_is_none(captioner: Captioner, prompt: str | None) -> None:
    options = replace(_GREEDY, prompt=prompt)
    assert captioner.generate(_IMAGES[:2], options) == captioner.generate(_IMAGES[:2], _GREEDY)


def test_sep_typed_in_a_prompt_is_text(captioner: Captioner) -> None:
    (best,) = captioner.generate(_IMAGES[:1], replace(_GREEDY, prompt="a dog [SEP]"))[0]
    assert best.text.startswith("a dog [ sep ]")
    assert len(best.token_ids) > 0


def test_the_paper_setting(captioner: Captioner, direct: Direct) -> None:
    for image, (best,) in zip(_IMAGES, captioner.generate(_IMAGES, PAPER), strict=True):
        # As the paper counts, the four tokens of the prompt included.
        expected = direct.generate(
            image, "a picture of", num_beams=3, max_length=20, min_length=5
        ).sequences.tolist()
        assert list(best.token_ids) == direct.generated(expected[0], "a picture of")


def test_the_checkpoints_own_generation_settings_are_ignored(
    captioner: Captioner, tmp_path: Path
) -> None:
    folder = save_tiny_blip(tmp_path)
    settings = {"num_beams": 5, "max_length": 3, "eos_token_id": 6, "repetition_penalty": 3.0}
    write_json(folder / "generation_config.json", {**settings, "do_sample": True, "top_k": 1})
    # Files before transformers 5 have them among the text settings.
    change_json(folder / "config.json", lambda value: value["text_config"].update(settings))
    other = load_captioner(str(folder), device="cpu", dtype="float32", backend="transformers")
    for options in (_GREEDY, GenerationOptions(), _SAMPLED):
        assert other.generate(_IMAGES, options) == captioner.generate(_IMAGES, options)


class TestSampling:
    def test_a_seed_repeats_itself_and_others_differ(self, captioner: Captioner) -> None:
        first, again = (captioner.generate(_IMAGES, _SAMPLED) for _ in range(2))
        assert first == again
        assert first != captioner.generate(_IMAGES, replace(_SAMPLED, seed=8))
        assert all(caption.beam_score is None for result in first for caption in result)

    def test_neighbours_and_the_process_change_nothing(self, captioner: Captioner) -> None:
        alone = captioner.generate(_IMAGES[3:4], _SAMPLED)[0]
        torch.manual_seed(1)
        others = [replace(_SAMPLED, seed=seed, num_return_sequences=2) for seed in range(7)]
        options = [*others[:5], _SAMPLED, *others[5:]]
        images = [*_IMAGES[4:], _IMAGES[0], _IMAGES[3], *_IMAGES[1:3]]
        assert captioner.generate(images, options)[5] == alone

    def test_the_process_keeps_its_own_random_numbers(self, captioner: Captioner) -> None:
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        captioner.generate(_IMAGES, _SAMPLED)
        assert torch.equal(torch.rand(4), expected)

    def test_without_a_seed_every_call_draws_anew(self, captioner: Captioner) -> None:
        torch.manual_seed(3)
        first = captioner.generate(_IMAGES, replace(_SAMPLED, seed=None))
        torch.manual_seed(3)
        assert first != captioner.generate(_IMAGES, replace(_SAMPLED, seed=None))

    def test_best_first(self, captioner: Captioner) -> None:
        options = replace(_SAMPLED, num_return_sequences=6, temperature=1.5)
        for captions in captioner.generate(_IMAGES, options):
            scores = [caption.score for caption in captions]
            assert scores == sorted(scores, reverse=True)
            assert len({caption.token_ids for caption in captions}) > 1

    def test_top_k_zero_is_off(self, captioner: Captioner) -> None:
        """transformers' own default, 50, would leave out the less likely of the tokens."""
        options = GenerationOptions(
            num_beams=1, do_sample=True, seed=1, max_new_tokens=1, temperature=100.0
        )
        many = replace(options, num_return_sequences=32)
        drawn = {
            caption.token_ids
            for seed in range(30)
            for caption in captioner.generate(_IMAGES[:1], replace(many, seed=seed))[0]
        }
        assert len(drawn) > 55

    def test_top_k_one_is_greedy(self, captioner: Captioner) -> None:
        greedy = captioner.generate(_IMAGES, _GREEDY)
        for options in (replace(_SAMPLED, top_k=1), replace(_SAMPLED, top_p=1e-6)):
            assert captioner.generate(_IMAGES, options) == greedy


def test_numpy_and_pil_agree(captioner: Captioner) -> None:
    options = GenerationOptions(prompt="a picture of")
    arrays = captioner.generate(_IMAGES, options)
    assert captioner.generate([Image.fromarray(image) for image in _IMAGES], options) == arrays


def test_bad_pictures_are_refused(captioner: Captioner) -> None:
    with pytest.raises(InvalidRequestError, match=r"uint8 \[height, width, 3\]"):
        captioner.generate([np.zeros((3, 8, 8), np.uint8)], _GREEDY)


def test_no_pictures_no_captions(captioner: Captioner) -> None:
    assert captioner.generate([], _GREEDY) == []


def test_options_must_be_one_or_one_per_image(captioner: Captioner) -> None:
    with pytest.raises(ValueError, match="2 sets of options for 3 images"):
        captioner.generate(_IMAGES[:3], [_GREEDY, _GREEDY])


@pytest.mark.parametrize("tokens", [POSITIONS - 4, POSITIONS - 3])
def test_prompt_too_long(captioner: Captioner, tokens: int) -> None:
    options = replace(_GREEDY, prompt="a picture of", max_new_tokens=tokens, min_new_tokens=tokens)
    if tokens == POSITIONS - 4:
        captioner.check(options)
        assert len(captioner.generate(_IMAGES[:1], options)[0][0].token_ids) == tokens
        return
    for refuse in (captioner.check, lambda one: captioner.generate(_IMAGES[:1], one)):
        with pytest.raises(JobError, match="positions") as caught:
            refuse(options)
        assert caught.value.code is ErrorCode.PROMPT_TOO_LONG


def test_info_names_the_model(captioner: Captioner, folder: Path) -> None:
    info = captioner.info
    assert (info.id, info.dtype, info.device) == (str(folder), "float32", "cpu")
    assert (info.backend, info.image_size) == ("transformers", 32)
    assert info.revision.startswith("sha256:")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_types_caption_too(folder: Path, captioner: Captioner, dtype: str) -> None:
    other = load_captioner(str(folder), device="cpu", dtype=dtype, backend="transformers")
    assert other.info.dtype == dtype
    results = other.generate(_IMAGES, GenerationOptions(max_new_tokens=6))
    assert all(np.isfinite(result[0].score) for result in results)
    if dtype == "float64":
        expected = captioner.generate(_IMAGES, GenerationOptions(max_new_tokens=6))
        assert [r[0].token_ids for r in results] == [r[0].token_ids for r in expected]


def test_closing_twice_is_fine_and_ends_it(folder: Path) -> None:
    other = load_captioner(str(folder), device="cpu", dtype="float32", backend="transformers")
    other.close()
    other.close()
    with pytest.raises(RuntimeError, match="closed"):
        other.generate(_IMAGES, _GREEDY)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (torch.OutOfMemoryError("no room"), JobError, "^cpu is full: .*no room$"),
        (torch.AcceleratorError("assert"), DeviceLostError, "^cpu cannot go on: .*assert$"),
        (RuntimeError("shapes"), RuntimeError, "^shapes$"),
    ],
)
def test_errors_of_the_device_say_what_they_mean(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: RuntimeError,
    kind: type[Exception],
    message: str,
) -> None:
    captioner = load_captioner(str(folder), device="cpu", dtype="float32", backend="transformers")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(captioner, "_caption", fail)
    with pytest.raises(kind, match=message):
        captioner.generate(_IMAGES[:1], _GREEDY)


def test_an_unknown_backend_is_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match="CAPTIONER_MODEL__BACKEND"):
        load_captioner(str(folder), backend="onnx")


def test_the_setting_takes_every_backend_there_is() -> None:
    setting = ModelSettings.model_fields["backend"]
    assert get_args(setting.annotation) == tuple(BACKENDS)
    assert setting.default == next(iter(BACKENDS))


def test_a_wrong_device_or_dtype_is_refused(folder: Path) -> None:
    for wrong in ({"device": "tpu"}, {"device": "cuda:99"}, {"dtype": "int4"}):
        with pytest.raises(ModelLoadError):
            load_captioner(str(folder), **wrong)
        # Before anything is looked for, let alone downloaded.
        with pytest.raises(ModelLoadError, match=next(iter(wrong))):
            load_captioner("/nowhere", **wrong)


def test_captions_compare_and_hash_as_values() -> None:
    one = GeneratedCaption("a dog", "dog", (5,), -0.5, None)
    assert one == replace(one)
    assert len({one, replace(one)}) == 1


def test_nothing_is_printed_and_importing_the_package_needs_no_torch(folder: Path) -> None:
    program = f"""
import sys
from captioner.inference import GenerationOptions, load_captioner
assert "torch" not in sys.modules and "transformers" not in sys.modules
import numpy, torch
torch.set_num_threads(1)
model = load_captioner({str(folder)!r}, device="cpu")
image = numpy.zeros((9, 9, 3), numpy.uint8)
for options in (GenerationOptions(), GenerationOptions(num_beams=1, prompt="a", min_new_tokens=3),
                GenerationOptions(num_beams=1, do_sample=True, seed=1)):
    model.generate([image], options)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

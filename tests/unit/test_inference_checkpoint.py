from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import run

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BlipTextConfig, BlipVisionConfig

from captioner.demo import MODEL_PATH
from captioner.errors import ModelLoadError
from captioner.inference import GenerationOptions, load_captioner
from captioner.inference.architecture import (
    TIED_COPIES,
    TextArchitecture,
    VisionArchitecture,
    expected_tensors,
    read_architecture,
)
from captioner.inference.checkpoint import open_checkpoint
from checkpoints import (
    POSITIONS,
    change_json,
    change_weights,
    random_picture,
    save_tiny_blip,
    tiny_config,
    tiny_model,
    write_json,
)

_WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"
_COPY = "text_decoder.cls.predictions.decoder.weight"
_COPIED_BIAS = "text_decoder.cls.predictions.decoder.bias"
_QUERY = "text_decoder.bert.encoder.layer.0.crossattention.self.query.bias"

Change = Callable[[dict[str, torch.Tensor]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_blip(tmp_path / "model")


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    return save_tiny_blip(tmp_path / "hub", layout="hub")


def refused(folder: Path | str) -> str:
    """The one line with which a model is refused."""
    with pytest.raises(ModelLoadError) as caught:
        load_captioner(str(folder), device="cpu", dtype="float32")
    text = str(caught.value)
    assert "\n" not in text
    return text


def split_into_shards(folder: Path, shards: int = 3) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[index::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


class TestArchitecture:
    def test_expected_tensors_are_those_of_the_model(self) -> None:
        model = {name: tuple(value.shape) for name, value in tiny_model().state_dict().items()}
        config = tiny_config().to_dict()
        ours = expected_tensors(read_architecture(config))
        assert {name: shape for name, shape in model.items() if name not in TIED_COPIES} == ours
        assert set(TIED_COPIES) == set(model) - set(ours)

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [(VisionArchitecture(), BlipVisionConfig()), (TextArchitecture(), BlipTextConfig())],
    )
    def test_defaults_are_those_of_transformers(self, ours: object, theirs: object) -> None:
        for name in ours.__slots__:  # type: ignore[attr-defined]
            assert getattr(ours, name) == getattr(theirs, name), name

    def test_sizes_given_as_equal_pairs_are_squares(self) -> None:
        config = tiny_config().to_dict()
        config["vision_config"] |= {"image_size": [32, 32], "patch_size": [8, 8]}
        assert read_architecture(config).vision.image_size == 32

    @pytest.mark.parametrize(
        ("section", "change"),
        [
            ("vision_config", {"image_size": [32, 64]}),
            ("vision_config", {"image_size": 33}),
            ("vision_config", {"patch_size": [[8], [8]]}),
            ("vision_config", {"num_hidden_layers": 10**9}),
            ("text_config", {"num_hidden_layers": 10**30}),
            ("text_config", {"max_position_embeddings": 10**5_000}),
            ("vision_config", {"hidden_size": 50}),
            ("vision_config", {"hidden_act": "quick_gelu"}),
            ("text_config", {"num_hidden_layers": 0}),
            ("text_config", {"num_attention_heads": "4"}),
            ("text_config", {"vocab_size": True}),
            ("text_config", {"bos_token_id": 10_000}),
            ("text_config", {"sep_token_id": -1}),
            ("text_config", {"layer_norm_eps": 0}),
        ],
    )
    def test_impossible_values_are_named(self, section: str, change: dict[str, object]) -> None:
        config = tiny_config().to_dict()
        config[section] |= change
        with pytest.raises(ModelLoadError, match=f"config.json: .*{next(iter(change))}"):
            read_architecture(config)


class TestBothLayouts:
    def test_they_give_the_same_captions(self, folder: Path, hub_folder: Path) -> None:
        assert _COPY not in load_file(folder / "model.safetensors")
        assert _COPY in load_file(hub_folder / "model.safetensors")
        assert not (hub_folder / "tokenizer.json").exists()
        assert not (hub_folder / "processor_config.json").exists()
        images = [random_picture(seed) for seed in range(4)]
        options = GenerationOptions(prompt="a picture of", max_new_tokens=8)
        results = [
            load_captioner(str(path), device="cpu", dtype="float32").generate(images, options)
            for path in (folder, hub_folder)
        ]
        assert results[0] == results[1]

    def test_both_processor_files_may_be_there(self, folder: Path, hub_folder: Path) -> None:
        shutil.copy(hub_folder / "preprocessor_config.json", folder)
        change_json(
            folder / "processor_config.json",
            lambda value: value["image_processor"].update(image_mean=[0.1, 0.2, 0.3]),
        )
        assert open_checkpoint(str(folder)).pixels.mean == (0.1, 0.2, 0.3)
        # As some files of 2023 are: no settings in it, only the processor's name.
        write_json(folder / "processor_config.json", {"processor_class": "BlipProcessor"})
        assert (
            open_checkpoint(str(folder)).pixels.mean == open_checkpoint(str(hub_folder)).pixels.mean
        )

    def test_a_folder_without_processor_settings_is_refused(self, folder: Path) -> None:
        (folder / "processor_config.json").unlink()
        assert "preprocessor_config.json" in refused(folder)

    def test_shards_load_as_one_file_does(self, folder: Path, tmp_path: Path) -> None:
        shards = shutil.copytree(folder, tmp_path / "shards")
        split_into_shards(shards)
        images = [random_picture(seed) for seed in range(3)]
        whole, parts = (
            load_captioner(str(path), device="cpu", dtype="float32") for path in (folder, shards)
        )
        assert whole.generate(images, GenerationOptions()) == parts.generate(
            images, GenerationOptions()
        )
        digest = hashlib.sha256()
        for path in sorted(shards.glob("*.safetensors")):
            digest.update(path.read_bytes())
        assert parts.info.revision == f"sha256:{digest.hexdigest()}"

    def test_half_precision_files_load(self, folder: Path) -> None:
        change_weights(folder, lambda all_: all_.update({n: t.half() for n, t in all_.items()}))
        model = load_captioner(str(folder), device="cpu", dtype="float32")
        assert model.info.dtype == "float32"
        assert model.generate([random_picture(0)], GenerationOptions())[0][0].text

    def test_a_position_counter_of_any_kind_is_ignored(self, hub_folder: Path) -> None:
        name = "text_decoder.bert.embeddings.position_ids"
        change_weights(hub_folder, lambda all_: all_.update({name: torch.zeros(1, 2 * POSITIONS)}))
        assert name not in open_checkpoint(str(hub_folder)).weights


class TestRevision:
    def test_it_is_the_hash_of_the_local_weights(self, folder: Path) -> None:
        expected = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        assert open_checkpoint(str(folder)).revision == f"sha256:{expected}"

    def test_it_cannot_be_asked_of_a_local_folder(self, folder: Path) -> None:
        with pytest.raises(ModelLoadError, match="CAPTIONER_MODEL__REVISION"):
            open_checkpoint(str(folder), "main")


class TestWhere:
    def test_demo_is_the_model_in_this_package(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "demo").mkdir()  # a folder of that name is not meant
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("captioner.inference.checkpoint.MODEL_PATH", tmp_path / "nowhere")
        assert "reinstall" in refused("demo")
        model = save_tiny_blip(tmp_path / "elsewhere")
        monkeypatch.setattr("captioner.inference.checkpoint.MODEL_PATH", model)
        checkpoint = open_checkpoint("demo")
        assert (checkpoint.folder, checkpoint.model_id) == (model, "demo")
        assert MODEL_PATH.parts[-2:] == ("demo", "model")

    def test_a_relative_folder_is_found(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(folder.parent)
        assert open_checkpoint("model").folder.resolve() == folder

    @pytest.mark.parametrize(
        "model_id", ["/nowhere/at/all", "./nothing", "", "one", "a/b/c", "../x"]
    )
    def test_no_such_folder(
        self, model_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert refused(model_id)

    def test_a_file_is_no_folder(self, folder: Path) -> None:
        assert "folder" in refused(folder / "model.safetensors")

    @pytest.mark.parametrize("model_id", ["~nobody-of-this-name/model", "long" * 1_000])
    def test_what_cannot_be_looked_for(self, model_id: str) -> None:
        assert "no looking for" in refused(model_id)


class TestConfig:
    def test_missing(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        assert "has no config.json" in refused(folder)

    @pytest.mark.parametrize(
        "text",
        ['{"model_type": ', "[" * 100_000, '{"model_type": ' + "1" * 5_000 + "}"],
        ids=["cut", "too deep", "too long a number"],
    )
    def test_not_json(self, folder: Path, text: str) -> None:
        (folder / "config.json").write_text(text, encoding="utf-8")
        assert "not valid JSON" in refused(folder)

    def test_not_an_object(self, folder: Path) -> None:
        write_json(folder / "config.json", ["blip"])
        assert "JSON object" in refused(folder)

    @pytest.mark.parametrize("kind", ["blip-2", "bert", None])
    def test_another_model(self, folder: Path, kind: str | None) -> None:
        change_json(folder / "config.json", lambda value: value.update(model_type=kind))
        assert f"model_type {kind!r}" in refused(folder)

    @pytest.mark.parametrize("section", ["text_config", "vision_config"])
    def test_a_section_missing(self, folder: Path, section: str) -> None:
        change_json(folder / "config.json", lambda value: value.pop(section))
        assert f"no {section}" in refused(folder)


class TestWeights:
    def test_a_folder_without_any(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        assert "has no weights: expected model.safetensors" in refused(folder)

    def test_pickles_are_refused_and_never_opened(self, folder: Path, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
                return os.mkdir, (str(tmp_path / "opened"),)

        (folder / "model.safetensors").unlink()
        torch.save(Trap(), folder / "pytorch_model.bin")
        text = refused(folder)
        assert "pytorch_model.bin" in text
        assert "save_pretrained" in text
        assert not (tmp_path / "opened").exists()

    @pytest.mark.parametrize(
        "content",
        [b"", b"\x00" * 7, b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04" * 50],
    )
    def test_a_file_of_another_kind(self, folder: Path, content: bytes) -> None:
        (folder / "model.safetensors").write_bytes(content)
        assert "model.safetensors is damaged" in refused(folder)

    def test_a_truncated_file(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        assert "model.safetensors is damaged" in refused(folder)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda all_: all_.pop(_QUERY), f"lack 1 tensors: {_QUERY}"),
            (lambda all_: all_.pop(_WORDS), _WORDS),
            (lambda all_: all_.update(surprise=torch.zeros(1)), "surprise is unknown"),
            (lambda all_: all_.update({_QUERY: torch.zeros(47)}), rf"{_QUERY} is \[47\]"),
            (
                lambda all_: all_.update({_QUERY: all_[_QUERY].to(torch.int8)}),
                f"{_QUERY} is of type I8",
            ),
            (lambda all_: all_.clear(), "and [0-9]+ more"),
        ],
    )
    def test_missing_unknown_and_unfit_tensors_are_named(
        self, folder: Path, change: Change, named: str
    ) -> None:
        change_weights(folder, change)
        with pytest.raises(ModelLoadError, match=named):
            open_checkpoint(str(folder))

    @pytest.mark.parametrize("copy", [_COPY, _COPIED_BIAS])
    def test_a_tied_copy_that_differs_in_one_number(self, hub_folder: Path, copy: str) -> None:
        def nudge(tensors: dict[str, torch.Tensor]) -> None:
            tensors[copy].view(-1)[-1] += 1e-3

        change_weights(hub_folder, nudge)
        text = refused(hub_folder)
        assert copy in text
        assert TIED_COPIES[copy] in text

    def test_a_tied_copy_of_another_shape(self, hub_folder: Path) -> None:
        change_weights(hub_folder, lambda all_: all_.update({_COPY: all_[_COPY][:-1].clone()}))
        assert _COPY in refused(hub_folder)

    def test_a_config_that_unties_needs_the_copies(self, folder: Path, hub_folder: Path) -> None:
        for path in (folder, hub_folder):
            change_json(path / "config.json", lambda value: value.update(tie_word_embeddings=False))
        assert _COPY in refused(folder)
        assert open_checkpoint(str(hub_folder)).weights

    def test_a_shard_missing(self, folder: Path) -> None:
        split_into_shards(folder)
        (folder / "model-00002-of-00003.safetensors").unlink()
        assert "model-00002-of-00003.safetensors" in refused(folder)

    @pytest.mark.parametrize(
        "shard", ["../other.safetensors", ["other.safetensors"], "long" * 100 + ".safetensors", ""]
    )
    def test_an_index_of_what_is_no_file_in_the_folder(self, folder: Path, shard: object) -> None:
        shutil.move(folder / "model.safetensors", folder.parent / "other.safetensors")
        write_json(folder / "model.safetensors.index.json", {"weight_map": {_WORDS: shard}})
        assert "weight_map" in refused(folder)

    def test_a_tensor_in_two_shards(self, folder: Path) -> None:
        split_into_shards(folder)
        first, second = sorted(folder.glob("model-*.safetensors"))[:2]
        both = load_file(first) | load_file(second)
        save_file(both, second, metadata={"format": "pt"})
        assert "stored twice" in refused(folder)

    def test_every_tensor_is_located(self, folder: Path) -> None:
        split_into_shards(folder)
        checkpoint = open_checkpoint(str(folder))
        for name, path in checkpoint.weights.items():
            assert name in load_file(path)
        assert set(checkpoint.weights) == set(expected_tensors(checkpoint.architecture))


def test_a_model_is_loaded_without_pytorchs_compiler() -> None:
    """Its import took longer than that of all else in an engine."""
    program = (
        "import sys; from captioner.inference import load_captioner\n"
        "load_captioner('demo', device='cpu', dtype='float32', backend='fast')\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    ended = run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr

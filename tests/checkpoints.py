"""Tiny BLIP checkpoints with random weights, in both layouts that are found in the wild."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
)

# With models this small, threads only wait for each other.
torch.set_num_threads(1)

#: `transformers5`: as save_pretrained writes. `hub`: as the files of 2022 and 2023 on the hub, with
#: tied copies and position_ids in the weights, vocab.txt and preprocessor_config.json.
Layout = Literal["transformers5", "hub"]

IMAGE_SIZE = 32
POSITIONS = 64
_TOKENS = """
[PAD] [UNK] [CLS] [SEP] [MASK]
a an the picture photo ##graphy ##s of with and on in under woman man dog cat ' s . , ! [ ] sep dec
red green blue round large small circle square star tree house boat sitting standing near water
grass two three not n t is are very old new white black
"""
VOCABULARY = {token: index for index, token in enumerate(_TOKENS.split())}
#: [DEC] is not in the tokenizer; [ENC] is the id after it.
DEC = len(VOCABULARY)
SEP = VOCABULARY["[SEP]"]


def tiny_config() -> BlipConfig:
    """A BLIP small enough to caption a picture in milliseconds."""
    size = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
    return BlipConfig(
        vision_config={**size, "num_hidden_layers": 2, "image_size": IMAGE_SIZE, "patch_size": 8},
        text_config={
            **size,
            "num_hidden_layers": 2,
            "encoder_hidden_size": 48,
            "max_position_embeddings": POSITIONS,
            "vocab_size": DEC + 2,
            "bos_token_id": DEC,
            "sep_token_id": SEP,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    )


def tiny_model(seed: int = 1) -> BlipForConditionalGeneration:
    """Random weights wide enough that captions differ from picture to picture.

    With seed 1 they end by themselves after 0 to 11 tokens, or not within 12.

    transformers' own initialisation leaves position and class embeddings at 1e-10, with which
    mistakes in positions stay invisible.
    """
    generator = torch.Generator().manual_seed(seed)
    model = BlipForConditionalGeneration(tiny_config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not ("norm" in name.lower() and name.endswith("weight")):
                parameter.normal_(0, 0.2, generator=generator)
        model.text_decoder.cls.predictions.bias[SEP] += 1.5
    model.train(mode=False)
    return model


def save_tiny_blip(folder: Path, *, seed: int = 1, layout: Layout = "transformers5") -> Path:
    """Write a checkpoint and return its folder; a seed gives the same model in either layout."""
    tokenizer = BertTokenizer(vocab=VOCABULARY, do_lower_case=True)
    processor = BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    tiny_model(seed).save_pretrained(folder)
    if layout == "transformers5":
        BlipProcessor(processor, tokenizer).save_pretrained(folder)  # type: ignore[no-untyped-call]
        return folder
    processor.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"},
    )
    change_weights(folder, _add_tied_copies)
    return folder


def _add_tied_copies(tensors: dict[str, torch.Tensor]) -> None:
    bert, head = "text_decoder.bert.embeddings", "text_decoder.cls.predictions"
    tensors[f"{head}.decoder.weight"] = tensors[f"{bert}.word_embeddings.weight"].clone()
    tensors[f"{head}.decoder.bias"] = tensors[f"{head}.bias"].clone()
    tensors[f"{bert}.position_ids"] = torch.arange(POSITIONS)[None]


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrite model.safetensors with its tensors changed."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite a JSON file with its contents changed."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    write_json(path, value)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value), encoding="utf-8")


def random_picture(seed: int, height: int = 40, width: int = 56) -> NDArray[np.uint8]:
    """uint8 `[height, width, 3]`: random colours in large patches, so that pictures differ."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 5 // width
    return np.ascontiguousarray(coarse[rows][:, columns])

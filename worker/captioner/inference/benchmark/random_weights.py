"""BLIP-large with random weights: its speed is that of the published ones, which are a download.

Everything has the published model's shape, and the files its format. Captions differ from picture
to picture, so that agreement between two models says something; what they say is nonsense.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from captioner.errors import SettingsError
from captioner.inference.architecture import expected_tensors, read_architecture

_SEED = 20_221_101
#: The published tokenizer's number of entries; [DEC] is the next id, [ENC] the one after.
_ENTRIES = 30_522
_SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
_WORDS = ("a", "an", "the", "picture", "photo", "photograph", "##y", "image", "of", "with")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
#: Standard deviation of weights, as BLIP is initialised. transformers leaves the encoder's position
#: and class embeddings at 1e-10, with which all places of a picture look the same.
_DEVIATION = 0.02

_CONFIG: dict[str, Any] = {
    "architectures": ["BlipForConditionalGeneration"],
    "model_type": "blip",
    "dtype": "float32",
    "image_text_hidden_size": 256,
    "projection_dim": 512,
    "vision_config": {
        "model_type": "blip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 16,
        "layer_norm_eps": 1e-5,
        "initializer_range": _DEVIATION,
    },
    "text_config": {
        "model_type": "blip_text_model",
        "vocab_size": _ENTRIES + 2,
        "hidden_size": 768,
        "encoder_hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "bos_token_id": _ENTRIES,
        "sep_token_id": 102,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
}
_PROCESSOR = {
    "image_processor_type": "BlipImageProcessor",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "size": {"height": 384, "width": 384},
}
_TOKENIZER = {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}


def make_blip_large(
    folder: Path, advance: Callable[[int, int], None] = lambda _done, _total: None
) -> bool:
    """Write the checkpoint, 1.8 GB; the same numbers every time.

    Args:
        folder: where; not there, empty, or with a checkpoint in it already, which stays.
        advance: told how many numbers there are, and of how many.

    Returns:
        False where there was one already.

    Raises:
        SettingsError: the folder holds something else, or cannot be written.
    """
    if (folder / "config.json").is_file():
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"{folder} is not empty: name a folder for the random weights alone")
    # Under another name until it is whole: half a file must never be taken for a checkpoint.
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        try:
            _write(part, advance)
            part.replace(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise SettingsError(
            f"cannot write the random weights to {folder}: {error.strerror or error}"
        ) from None
    return True


def _write(folder: Path, advance: Callable[[int, int], None]) -> None:
    shapes = expected_tensors(read_architecture(_CONFIG))
    total, done = sum(map(math.prod, shapes.values())), 0
    generator = torch.Generator().manual_seed(_SEED)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        if "norm" in name.lower() and name.endswith("weight"):
            tensors[name] = torch.ones(shape)
        elif name.endswith("bias"):
            tensors[name] = torch.zeros(shape)
        else:
            tensors[name] = torch.empty(shape).normal_(0, _DEVIATION, generator=generator)
        done += math.prod(shape)
        advance(done, total)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, value in (
        ("preprocessor_config.json", _PROCESSOR),
        ("tokenizer_config.json", _TOKENIZER),
        ("config.json", _CONFIG),
    ):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(_vocabulary()) + "\n", encoding="utf-8")


def _vocabulary() -> Iterator[str]:
    """30,522 entries, with which every prompt in English can be written."""
    real = [*_WORDS, *(letter for letter in _LETTERS if letter not in _WORDS)]
    real += [f"##{letter}" for letter in _LETTERS if f"##{letter}" not in _WORDS]
    made_up = (
        "".join(syllables)
        for length in itertools.count(2)
        for syllables in itertools.product(
            [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"], repeat=length
        )
    )
    words = itertools.chain(real, made_up)
    for index in range(_ENTRIES):
        yield _SPECIAL.get(index) or (f"[unused{index}]" if index < 104 else next(words))

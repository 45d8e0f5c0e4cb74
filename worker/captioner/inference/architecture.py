"""The shape of a BLIP captioner: read from config.json, and the tensors that follow from it.

Defaults are those of transformers' `BlipVisionConfig` and `BlipTextConfig`, because its files
leave out values that equal them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from captioner.errors import ModelLoadError
from captioner.options.values import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionArchitecture:
    """The image encoder: a vision transformer over patches and one class token."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    #: Side of the square input in pixels.
    image_size: int = 384
    patch_size: int = 16
    layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu"

    @property
    def positions(self) -> int:
        """Image states: one per patch and the class token's."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TextArchitecture:
    """The text decoder: BERT with causal self-attention and cross-attention to the image."""

    vocab_size: int = 30524
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 512
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    #: [DEC], with which every caption starts.
    bos_token_id: int = 30522
    #: [SEP], with which every caption ends; `eos_token_id` plays no part in captioning.
    sep_token_id: int = 102
    pad_token_id: int = 0


@dataclass(frozen=True, slots=True)
class Architecture:
    """Both halves."""

    vision: VisionArchitecture
    text: TextArchitecture
    #: False where the file must carry the LM head's copies itself; they must be equal all the same.
    tied: bool = True


#: Every layer is looked for by name before any weight is read: a wrong number must end soon.
_MOST_LAYERS = 1_000

#: Where the decoder's first and last layers are in a file.
EMBEDDINGS = "text_decoder.bert.embeddings"
HEAD = "text_decoder.cls.predictions"

#: Copies that files before transformers 5 carry, and what each must equal.
TIED_COPIES = {
    f"{HEAD}.decoder.weight": f"{EMBEDDINGS}.word_embeddings.weight",
    f"{HEAD}.decoder.bias": f"{HEAD}.bias",
}
#: Counters 0, 1, 2 … that the same files carry.
IGNORED_TENSORS = frozenset({f"{EMBEDDINGS}.position_ids"})


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the contents of config.json.

    Raises:
        ModelLoadError: the model is not a BLIP captioner, or a value cannot be used.
    """
    kind = config.get("model_type")
    if kind != "blip":
        raise ModelLoadError(
            f"config.json says model_type {kind!r}: only BLIP captioning models "
            "(model_type 'blip') can be loaded"
        )
    vision = _read_section(VisionArchitecture, config, "vision_config")
    text = _read_section(TextArchitecture, config, "text_config")
    if vision.image_size % vision.patch_size:
        raise ModelLoadError(
            f"config.json: image_size {vision.image_size} is not a multiple of "
            f"patch_size {vision.patch_size}"
        )
    for name in ("bos_token_id", "sep_token_id", "pad_token_id"):
        if getattr(text, name) >= text.vocab_size:
            raise ModelLoadError(
                f"config.json: text_config.{name} {getattr(text, name)} is outside the vocabulary "
                f"of {text.vocab_size}"
            )
    return Architecture(vision, text, tied=config.get("tie_word_embeddings") is not False)


_Section = TypeVar("_Section", VisionArchitecture, TextArchitecture)


def _read_section(kind: type[_Section], config: Mapping[str, Any], name: str) -> _Section:
    section = config.get(name)
    if not isinstance(section, Mapping):
        raise ModelLoadError(
            f"config.json has no {name}: it is not that of a BLIP captioning model"
        )
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        value = section.get(field.name)
        if value is None:
            continue
        if field.name in ("image_size", "patch_size") and isinstance(value, list | tuple):
            value = value[0] if value and all(side == value[0] for side in value) else value
        _check_value(f"{name}.{field.name}", value, field.default)
        values[field.name] = value
    read = kind(**values)
    if read.hidden_size % read.num_attention_heads:
        raise ModelLoadError(
            f"config.json: {name}.hidden_size {read.hidden_size} cannot be shared out among "
            f"{read.num_attention_heads} attention heads"
        )
    return read


def _check_value(name: str, value: object, default: object) -> None:
    if isinstance(default, str):
        # The only activation any BLIP was trained with; a silent other one would be a wrong model.
        usable, wanted = value == default, f"{default!r}"
    elif isinstance(default, float):
        usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1
        wanted = "a number between 0 and 1"
    else:
        least = 0 if name.endswith("_token_id") else 1
        most = _MOST_LAYERS if name.endswith("num_hidden_layers") else 2**31 - 1
        usable = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        wanted = f"a whole number from {least} to {most}"
    if not usable:
        raise ModelLoadError(f"config.json: {name} must be {wanted}, not {shown(value)}")


def expected_tensors(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor a checkpoint must hold, tied copies left out."""
    return {
        **_vision_tensors(architecture.vision),
        **_text_tensors(architecture.text, architecture.vision.hidden_size),
    }


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _vision_tensors(vision: VisionArchitecture) -> dict[str, tuple[int, ...]]:
    width, inner = vision.hidden_size, vision.intermediate_size
    tensors: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, width),
        "vision_model.embeddings.position_embedding": (1, vision.positions, width),
        "vision_model.embeddings.patch_embedding.weight": (
            width,
            3,
            vision.patch_size,
            vision.patch_size,
        ),
        "vision_model.embeddings.patch_embedding.bias": (width,),
    }
    for index in range(vision.num_hidden_layers):
        layer = f"vision_model.encoder.layers.{index}"
        tensors |= _linear(f"{layer}.self_attn.qkv", width, 3 * width)
        tensors |= _linear(f"{layer}.self_attn.projection", width, width)
        tensors |= _norm(f"{layer}.layer_norm1", width)
        tensors |= _linear(f"{layer}.mlp.fc1", width, inner)
        tensors |= _linear(f"{layer}.mlp.fc2", inner, width)
        tensors |= _norm(f"{layer}.layer_norm2", width)
    return tensors | _norm("vision_model.post_layernorm", width)


def _text_tensors(text: TextArchitecture, image_width: int) -> dict[str, tuple[int, ...]]:
    width, inner = text.hidden_size, text.intermediate_size
    tensors: dict[str, tuple[int, ...]] = {
        f"{EMBEDDINGS}.word_embeddings.weight": (text.vocab_size, width),
        f"{EMBEDDINGS}.position_embeddings.weight": (text.max_position_embeddings, width),
        **_norm(f"{EMBEDDINGS}.LayerNorm", width),
    }
    for index in range(text.num_hidden_layers):
        layer = f"text_decoder.bert.encoder.layer.{index}"
        for attention, key_width in (("attention", width), ("crossattention", image_width)):
            tensors |= _linear(f"{layer}.{attention}.self.query", width, width)
            tensors |= _linear(f"{layer}.{attention}.self.key", key_width, width)
            tensors |= _linear(f"{layer}.{attention}.self.value", key_width, width)
            tensors |= _linear(f"{layer}.{attention}.output.dense", width, width)
            tensors |= _norm(f"{layer}.{attention}.output.LayerNorm", width)
        tensors |= _linear(f"{layer}.intermediate.dense", width, inner)
        tensors |= _linear(f"{layer}.output.dense", inner, width)
        tensors |= _norm(f"{layer}.output.LayerNorm", width)
    tensors |= _linear(f"{HEAD}.transform.dense", width, width)
    tensors |= _norm(f"{HEAD}.transform.LayerNorm", width)
    return tensors | {f"{HEAD}.bias": (text.vocab_size,)}

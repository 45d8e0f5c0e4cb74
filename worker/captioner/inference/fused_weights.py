"""From a checkpoint's tensors to ours: other names, and matrices that act on the same input joined.

A product with one joined matrix is the products with its parts, number by number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from captioner.errors import ModelLoadError, describe
from captioner.inference.architecture import EMBEDDINGS, HEAD, Architecture
from captioner.inference.blip import Blip
from captioner.inference.checkpoint import Checkpoint
from captioner.inference.normalisation import fold_normalisation, folds_normalisation

_VISION_LAYER = {
    "norm_attention": ["layer_norm1"],
    "query_key_value": ["self_attn.qkv"],
    "attention_output": ["self_attn.projection"],
    "norm_perceptron": ["layer_norm2"],
    "fc1": ["mlp.fc1"],
    "fc2": ["mlp.fc2"],
}
_TEXT_LAYER = {
    "query_key_value": [f"attention.self.{part}" for part in ("query", "key", "value")],
    "attention_output": ["attention.output.dense"],
    "norm_attention": ["attention.output.LayerNorm"],
    "image_query": ["crossattention.self.query"],
    "image_key_value": [f"crossattention.self.{part}" for part in ("key", "value")],
    "image_attention_output": ["crossattention.output.dense"],
    "norm_image": ["crossattention.output.LayerNorm"],
    "fc1": ["intermediate.dense"],
    "fc2": ["output.dense"],
    "norm_perceptron": ["output.LayerNorm"],
}


def sources(architecture: Architecture) -> dict[str, list[str]]:
    """Per tensor of `Blip`, those of the checkpoint that follow each other in it."""
    vision, text = architecture.vision, architecture.text
    names = {
        "vision.class_token": ["vision_model.embeddings.class_embedding"],
        "vision.positions": ["vision_model.embeddings.position_embedding"],
        **_with_bias("vision.patches", ["vision_model.embeddings.patch_embedding"]),
        **_with_bias("vision.norm", ["vision_model.post_layernorm"]),
        "text.token_embedding.weight": [f"{EMBEDDINGS}.word_embeddings.weight"],
        "text.position_embedding.weight": [f"{EMBEDDINGS}.position_embeddings.weight"],
        **_with_bias("text.norm", [f"{EMBEDDINGS}.LayerNorm"]),
        **_with_bias("text.transform", [f"{HEAD}.transform.dense"]),
        **_with_bias("text.norm_transform", [f"{HEAD}.transform.LayerNorm"]),
        "text.lm_head.weight": [f"{EMBEDDINGS}.word_embeddings.weight"],
        "text.lm_head.bias": [f"{HEAD}.bias"],
    }
    for ours, theirs, layers, parts in (
        ("vision", "vision_model.encoder.layers", vision.num_hidden_layers, _VISION_LAYER),
        ("text", "text_decoder.bert.encoder.layer", text.num_hidden_layers, _TEXT_LAYER),
    ):
        for index in range(layers):
            for part, joined in parts.items():
                names |= _with_bias(
                    f"{ours}.layers.{index}.{part}", [f"{theirs}.{index}.{name}" for name in joined]
                )
    return names


def _with_bias(ours: str, theirs: list[str]) -> dict[str, list[str]]:
    return {f"{ours}.{kind}": [f"{name}.{kind}" for name in theirs] for kind in ("weight", "bias")}


def load_blip(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Blip:
    """Build the model and read its weights onto the device, in the given type.

    In a half type the patch projection takes uint8 pixels less `PIXEL_ZERO`, in float32 and
    float64 normalised ones.

    Raises:
        ModelLoadError: a file cannot be read, or the device has too little memory.
    """
    try:
        with torch.device("meta"):
            model = Blip(checkpoint.architecture)
        weights = _read(checkpoint, device, dtype)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = "does not fit" if isinstance(error, torch.OutOfMemoryError) else "cannot be put on"
        raise ModelLoadError(
            f"the model {checkpoint.model_id!r} {reason} {device}: {describe(error)}"
        ) from None
    model.load_state_dict(weights, assign=True)
    model.text.lm_head_dtype = model.text.lm_head.weight.dtype
    if model.text.lm_head_dtype == model.text.token_embedding.weight.dtype:
        model.text.lm_head.weight = model.text.token_embedding.weight
    return model.requires_grad_(requires_grad=False).eval()


def _read(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    with ExitStack() as stack:
        files: Mapping[Path, Any] = {  # safetensors' own class is untyped
            path: stack.enter_context(safe_open(path, framework="pt", device=str(device)))
            for path in set(checkpoint.weights.values())
        }

        def stored(name: str) -> Tensor:
            tensor: Tensor = files[checkpoint.weights[name]].get_tensor(name)
            return tensor

        all_sources = sources(checkpoint.architecture)
        for ours, theirs in all_sources.items():
            weights[ours] = _join(stored(name).to(dtype) for name in theirs)
        # Read again rather than converted back: the file may hold more than half types can.
        lm_head_dtype = torch.promote_types(dtype, torch.float32)
        for kind in ("weight", "bias"):
            name = f"text.lm_head.{kind}"
            (source,) = all_sources[name]
            weights[name] = stored(source).to(lm_head_dtype)
        patches = "vision_model.embeddings.patch_embedding"
        weight, bias = stored(f"{patches}.weight"), stored(f"{patches}.bias")
    if folds_normalisation(dtype):
        weight, bias = fold_normalisation(weight, bias, checkpoint.pixels)
    # Rows, columns and colours of a patch, as pictures have them in memory: copied in long runs.
    weights["vision.patches.weight"] = weight.permute(0, 2, 3, 1).flatten(1).to(dtype)
    weights["vision.patches.bias"] = bias.to(dtype)
    for name in ("vision.class_token", "vision.positions"):
        weights[name] = weights[name].squeeze(0).squeeze(0)
    return weights


def _join(parts: Iterable[Tensor]) -> Tensor:
    joined = list(parts)
    return joined[0] if len(joined) == 1 else torch.cat(joined)

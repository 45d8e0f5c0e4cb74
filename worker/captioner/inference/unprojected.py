"""Cross-attention to image states that are never projected to keys and values.

A key is W_k x + b_k, so its product with a query q is (W_kᵀ q) · x + q · b_k; the second term is
the same for every state x of the image, and softmax forgets it. A sum of values, weighted by
numbers p that add up to 1, is W_v (Σ p x) + b_v. So the projections can act on a caption's few
queries instead of on the image's 577 states (DeepSeek-V2 does the same with its compressed keys,
arXiv 2405.04434, section 2.1.2).

It pays where images are many and queries few: projecting 8 images to keys and values for 12 layers
took 82 ms (two cores with AMX, bfloat16), and attention to them takes 13.5 ms a step instead of
15.5, with three captions each 16 instead of 13. In float32 on old CPUs it took 2.6 s, and a step
88 ms instead of 32, with three captions each 172 instead of 46: it pays up to 46 and 20 tokens. For
about 64 queries an image, such as a prompt of 64 tokens, both take as many multiplications.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captioner.inference.attention import attention_weights
from captioner.inference.blip import Attention, Cache, TextLayer
from captioner.inference.captions import Captions
from captioner.inference.runners import EagerRunner

#: Fewer do not pay for the projections of their queries, whose weights are read at every step.
LEAST_IMAGES = 4
#: More take longer for 1,024 numbers a state than for the 96 of a head.
MOST_CAPTIONS = 3
#: Longer prompts leave too few of the 64 queries for what is generated.
MOST_PROMPT_TOKENS = 32


class UnprojectedRunner(EagerRunner):
    """The decoder as it is written, with image states as they are where that is faster."""

    def _new_cache(self, states: Tensor, captions: Captions) -> Cache:
        images, count, slots = captions.seen.shape
        few = (
            images >= LEAST_IMAGES
            and count <= MOST_CAPTIONS
            and captions.prompt_slots <= MOST_PROMPT_TOKENS
        )
        return self.model.text.new_cache(states, slots, projected=not few)


class FewQueries:
    """A layer's attention to one image for few queries."""

    def __init__(self, layer: TextLayer, attend: Attention) -> None:
        """`layer` has its weights; they are copied. `attend` is for states that are projected."""
        self._attend = attend
        projection = layer.image_key_value
        weight: Any = projection.weight.detach()
        width = projection.out_features // 2
        key, value = weight.view(2, layer.heads, width // layer.heads, projection.in_features)
        #: `[H, D, W]` and `[H, W, D]`.
        self._keys, self._values = key.contiguous(), value.transpose(1, 2).contiguous()
        #: `[H, 1, D]`.
        self._bias = projection.bias.detach()[width:].view(layer.heads, 1, -1)

    def __call__(self, query: Tensor, *seen: Tensor) -> Tensor:
        """Queries `[B, H, Q, D]`, and keys and values `[B, H, N, D]` or states `[B, N, W]`."""
        if len(seen) == 2:
            key, value = seen
            return self._attend(query, key, value)
        (states,) = seen
        images, heads, queries, size = query.shape
        # `[H, B × Q, D]` to `[B, H × Q, W]`: one product a head, then one an image.
        asked = query.transpose(0, 1).reshape(heads, images * queries, size) @ self._keys
        asked = asked.view(heads, images, queries, -1).transpose(0, 1).flatten(1, 2)
        mean = attention_weights(asked, states, size**-0.5) @ states
        # And back.
        mean = mean.view(images, heads, queries, -1).transpose(0, 1).flatten(1, 2)
        values: Tensor = mean @ self._values + self._bias
        return values.view(heads, images, queries, size).transpose(0, 1)

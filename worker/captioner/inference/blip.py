"""BLIP's captioner, to be read beside the paper (arXiv 2201.12086): image encoder, text decoder.

Plain PyTorch, in any floating-point type, on any device: what makes it faster on one machine or
another is in acceleration.py and cuda_graphs.py. Letters in shapes: B images, N image states of
one image (or of all frames of a video), Q queries, S slots of the cache, H heads, D numbers per
head, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioner.inference.architecture import Architecture, TextArchitecture, VisionArchitecture

#: Queries `[B, H, Q, D]`, keys and values `[B, H, N, D]`, to `[B, H, Q, D]`.
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
#: The same, of keys and values or of the image states that they would be projected from.
ImageAttention = Callable[..., Tensor]
#: As `project`.
Projection = Callable[[nn.Linear, Tensor, Tensor, Tensor], None]
#: As `attend_tokens`.
TokenAttention = Callable[[Tensor, "Tokens", Tensor, Tensor], Tensor]


class GeluLinear(nn.Linear):
    """A linear layer and GELU, the exact one with erf: the tanh form is another function."""

    def forward(self, x: Tensor) -> Tensor:
        """`[…, inputs]` to `[…, outputs]`."""
        return functional.gelu(super().forward(x))


class ResidualLinear(nn.Linear):
    """A linear layer that leads back into the stream it branched from."""

    def forward(self, x: Tensor, stream: Tensor) -> Tensor:  # type: ignore[override]
        """`[…, inputs]` and `[…, outputs]` to their sum, `[…, outputs]`."""
        return super().forward(x) + stream


class VisionEncoder(nn.Module):
    """A vision transformer over square patches and one class token."""

    def __init__(self, shape: VisionArchitecture) -> None:
        """Build it with weights as PyTorch leaves them; fused_weights.py puts the real ones in."""
        super().__init__()
        self.patch_size = shape.patch_size
        self.patches = nn.Linear(3 * shape.patch_size**2, shape.hidden_size)
        self.class_token = nn.Parameter(torch.empty(shape.hidden_size))
        self.positions = nn.Parameter(torch.empty(shape.positions, shape.hidden_size))
        self.layers = nn.ModuleList(VisionLayer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels `[B, side, side, 3]` to image states `[B, N, W]`."""
        images, size = len(pixels), self.patch_size
        grid = pixels.shape[1] // size
        # The convolution of the paper as a matrix product: patches do not overlap.
        x = pixels.view(images, grid, size, grid, size, 3).transpose(2, 3)
        x = self.patches(x.reshape(images, grid * grid, -1))
        x = torch.cat((self.class_token.expand(images, 1, -1), x), dim=1) + self.positions
        for layer in self.layers:
            x = layer(x)
        states: Tensor = self.norm(x)
        return states


class VisionLayer(nn.Module):
    """Attention among the patches and a perceptron, each normalised before."""

    def __init__(self, shape: VisionArchitecture) -> None:
        """One of the encoder's."""
        super().__init__()
        width = shape.hidden_size
        self.heads = shape.num_attention_heads
        self.norm_attention = nn.LayerNorm(width, eps=shape.layer_norm_eps)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attend: Attention = functional.scaled_dot_product_attention
        self.attention_output = ResidualLinear(width, width)
        self.norm_perceptron = nn.LayerNorm(width, eps=shape.layer_norm_eps)
        self.fc1 = GeluLinear(width, shape.intermediate_size)
        self.fc2 = ResidualLinear(shape.intermediate_size, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, W]` to the same."""
        query, key, value = split_heads(self.query_key_value(self.norm_attention(x)), 3, self.heads)
        x = self.attention_output(join_heads(self.attend(query, key, value)), x)
        out: Tensor = self.fc2(self.fc1(self.norm_perceptron(x)), x)
        return out


@dataclass(slots=True)
class Cache:
    """Keys and values of B images, per layer of the decoder.

    Whatever is generated of an image (its beams, its samples) shares its image states. Its tokens
    share one row of slots, too: who descends from whom is the mask's business, and nothing is
    moved when beams are reordered.
    """

    #: Per layer, keys and values of the image states: `[B, H, N, D]`.
    image_keys: list[Tensor]
    image_values: list[Tensor]
    #: Per layer, keys and values of prompt and generated tokens: `[B, H, S, D]`.
    token_keys: list[Tensor]
    token_values: list[Tensor]
    #: Image states `[B, N, W]` for all layers, where they are not projected; else nothing.
    image_states: list[Tensor] = field(default_factory=list)

    def of_images(self, layer: int) -> tuple[Tensor, ...]:
        """What a layer attends to, beside its queries."""
        return tuple(self.image_states) or (self.image_keys[layer], self.image_values[layer])

    def everything(self) -> list[list[Tensor]]:
        """All lists, in the order of the fields."""
        return [
            self.image_keys,
            self.image_values,
            self.token_keys,
            self.token_values,
            self.image_states,
        ]

    def first(self, images: int) -> Cache:
        """The same memory, of the first images alone."""
        return Cache(*([tensor[:images] for tensor in part] for part in self.everything()))


@dataclass(slots=True)
class Tokens:
    """What the decoder reads at once: a prompt, or the newest token of each beam."""

    #: `[B, Q]`.
    ids: Tensor
    #: `[B, Q]`, counted from [DEC].
    positions: Tensor
    #: `[Q]`: where the cache takes their keys and values.
    slots: Tensor
    #: `[B, 1, Q, S]`: 0 where a query sees a slot, -inf where not.
    mask: Tensor


class TextDecoder(nn.Module):
    """BERT, with causal self-attention and cross-attention to the image states."""

    def __init__(self, shape: TextArchitecture, image_width: int) -> None:
        """Build it with weights as PyTorch leaves them; fused_weights.py puts the real ones in."""
        super().__init__()
        width, eps = shape.hidden_size, shape.layer_norm_eps
        self.heads = shape.num_attention_heads
        # Never drawn at random: they are read from a file, and to draw where no memory is taken
        # makes PyTorch import its compiler, a quarter of the time in which a worker starts.
        self.token_embedding = nn.Embedding(
            shape.vocab_size, width, _weight=torch.empty(shape.vocab_size, width)
        )
        length = shape.max_position_embeddings
        self.position_embedding = nn.Embedding(length, width, _weight=torch.empty(length, width))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.layers = nn.ModuleList(
            TextLayer(shape, image_width) for _ in range(shape.num_hidden_layers)
        )
        self.transform = GeluLinear(width, width)
        self.norm_transform = nn.LayerNorm(width, eps=eps)
        #: Whether an image's keys and values lie state by state, as they are computed, or head by
        #: head. They are read at every step: on a CPU the latter is 2 to 5 times as fast.
        self.by_state = False
        # Its weight is that of `token_embedding`, in float32 where that is half: see `logits`.
        self.lm_head = nn.Linear(width, shape.vocab_size)
        self.lm_head_dtype = torch.float32

    def new_cache(self, states: Tensor, slots: int, *, projected: bool = True) -> Cache:
        """A cache for image states `[B, N, W]` and as many slots, with nothing in it yet.

        Args:
            states: its own are to be seen.
            slots: for tokens.
            projected: whether states are projected to keys and values, or seen as they are.
        """
        images, seen = states.shape[:2]
        size = self.token_embedding.embedding_dim // self.heads

        def empty(length: int) -> list[Tensor]:
            return [states.new_empty(images, self.heads, length, size) for _ in self.layers]

        tokens = (empty(slots), empty(slots))
        if not projected:
            return Cache([], [], *tokens, [states])
        if not self.by_state:
            return Cache(empty(seen), empty(seen), *tokens)
        joined = [states.new_empty(images, seen, 2 * self.heads * size) for _ in self.layers]
        keys, values = zip(*(split_heads(one, 2, self.heads) for one in joined), strict=True)
        return Cache(list(keys), list(values), *tokens)

    def project_image(self, states: Tensor, cache: Cache) -> None:
        """Project image states `[B, N, W]` once for all that is to be generated from them."""
        for layer, keys, values in zip(
            cast(Iterable[TextLayer], self.layers),
            cache.image_keys,
            cache.image_values,
            strict=False,  # none, where they are not projected
        ):
            layer.project(layer.image_key_value, states, keys, values)

    def forward(self, tokens: Tokens, cache: Cache) -> Tensor:
        """Read tokens, write their keys and values into the cache, and return `[B, Q, W]`."""
        # Images that have ended, and rows without one, are counted further until they are left out.
        # Nobody reads what becomes of them, but a position that is not there ends a CUDA process.
        positions = tokens.positions.clamp(max=self.position_embedding.num_embeddings - 1)
        x: Tensor = self.norm(self.token_embedding(tokens.ids) + self.position_embedding(positions))
        for index, layer in enumerate(self.layers):
            x = layer(x, tokens, cache, index)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """`[…, W]` to float32 `[…, V]`: transformers chooses tokens in float32 in every type.

        In a half type the last product is float32, too. Its sums rounded to 8 bits would tie words
        that are not tied, and flip more captions than transformers does.
        """
        x = self.norm_transform(self.transform(x))
        out: Tensor = self.lm_head(x.to(self.lm_head_dtype))
        return out.float()


class TextLayer(nn.Module):
    """Attention to earlier tokens, to the image, and a perceptron, each normalised after."""

    def __init__(self, shape: TextArchitecture, image_width: int) -> None:
        """One of the decoder's."""
        super().__init__()
        width, eps = shape.hidden_size, shape.layer_norm_eps
        self.heads = shape.num_attention_heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attend_tokens: TokenAttention = attend_tokens
        self.attention_output = ResidualLinear(width, width)
        self.norm_attention = nn.LayerNorm(width, eps=eps)
        self.attend_image: ImageAttention = functional.scaled_dot_product_attention
        self.image_query = nn.Linear(width, width)
        self.image_key_value = nn.Linear(image_width, 2 * width)
        self.project: Projection = project
        self.image_attention_output = ResidualLinear(width, width)
        self.norm_image = nn.LayerNorm(width, eps=eps)
        self.fc1 = GeluLinear(width, shape.intermediate_size)
        self.fc2 = ResidualLinear(shape.intermediate_size, width)
        self.norm_perceptron = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, tokens: Tokens, cache: Cache, index: int) -> Tensor:
        """`[B, Q, W]` to the same; `index` is this layer's in the cache."""
        keys, values = cache.token_keys[index], cache.token_values[index]
        seen = self.attend_tokens(self.query_key_value(x), tokens, keys, values)
        x = self.norm_attention(self.attention_output(join_heads(seen), x))
        (query,) = split_heads(self.image_query(x), 1, self.heads)
        seen = self.attend_image(query, *cache.of_images(index))
        x = self.norm_image(self.image_attention_output(join_heads(seen), x))
        out: Tensor = self.norm_perceptron(self.fc2(self.fc1(x), x))
        return out


def project(projection: nn.Linear, states: Tensor, keys: Tensor, values: Tensor) -> None:
    """Image states `[B, N, W]` to keys and values `[B, H, N, D]`, which are there."""
    key, value = split_heads(projection(states), 2, keys.shape[1])
    keys.copy_(key)
    values.copy_(value)


def attend_tokens(joined: Tensor, tokens: Tokens, keys: Tensor, values: Tensor) -> Tensor:
    """Attention among tokens, whose keys and values go to the cache first.

    Args:
        joined: their queries, keys and values, `[B, Q, 3W]`.
        tokens: what they are.
        keys: of the cache, `[B, H, S, D]`; changed.
        values: likewise.

    Returns:
        `[B, H, Q, D]`.
    """
    query = write_cache(joined, tokens, keys, values)
    return functional.scaled_dot_product_attention(query, keys, values, attn_mask=tokens.mask)


def write_cache(joined: Tensor, tokens: Tokens, keys: Tensor, values: Tensor) -> Tensor:
    """Put tokens' keys and values into the cache; see `attend_tokens`. Returns their queries."""
    query, key, value = split_heads(joined, 3, keys.shape[1])
    keys.index_copy_(2, tokens.slots, key)
    values.index_copy_(2, tokens.slots, value)
    return query


class Blip(nn.Module):
    """Both halves."""

    def __init__(self, architecture: Architecture) -> None:
        """`architecture` as config.json gives it."""
        super().__init__()
        self.vision = VisionEncoder(architecture.vision)
        self.text = TextDecoder(architecture.text, architecture.vision.hidden_size)


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """`[B, Q, parts × W]` to as many views `[B, H, Q, D]`."""
    images, queries, width = x.shape
    split = x.view(images, queries, parts, heads, width // parts // heads)
    return split.permute(2, 0, 3, 1, 4).unbind(0)


def join_heads(x: Tensor) -> Tensor:
    """`[B, H, Q, D]` to `[B, Q, W]`."""
    return x.transpose(1, 2).flatten(2)

"""B images being captioned at once, K captions each: what beam search and sampling have in common.

Prompts may differ in length: shorter ones stand at the right of the prompt's slots, and what is
left of them is never seen. The token that caption k gets at step t goes to slot P + t × K + k.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from captioner.inference.blip import Cache, TextDecoder, Tokens
from captioner.inference.processors import History
from captioner.options import GenerationOptions


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be generated of one image, or of the frames of one video."""

    #: Which of the encoded images.
    images: tuple[int, ...]
    #: [DEC] and the prompt's tokens.
    prompt: tuple[int, ...]
    options: GenerationOptions
    #: What `options.seed` stands for.
    seed: int

    @property
    def captions(self) -> int:
        """K: captions that are generated side by side."""
        return (
            self.options.num_return_sequences if self.options.do_sample else self.options.num_beams
        )


@dataclass(frozen=True, slots=True)
class Generated:
    """One caption as token ids."""

    #: [SEP] included where it was generated.
    tokens: tuple[int, ...]
    #: Sum over the tokens, as the model gave them.
    log_probability: float
    beam_score: float | None = None


class Runner(Protocol):
    """What executes the decoder; the eager one is here, another in cuda_graphs.py."""

    def look(self, states: Tensor, captions: int, slots: int) -> Cache:
        """A cache for image states `[B, N, W]`, valid until this is called again."""

    def read(self, tokens: Tokens, cache: Cache) -> Tensor:
        """Logits `[B, K, V]` after each image's newest tokens."""

    def release(self) -> None:
        """Give back memory held between calls."""


class EagerRunner:
    """The decoder as it is written."""

    def __init__(self, decoder: TextDecoder) -> None:
        """The decoder is shared, not copied."""
        self._decoder = decoder

    def look(self, states: Tensor, captions: int, slots: int) -> Cache:  # noqa: ARG002
        """See `Runner.look`."""
        return self._decoder.look(states, slots)

    def read(self, tokens: Tokens, cache: Cache) -> Tensor:
        """See `Runner.read`."""
        return self._decoder.logits(self._decoder(tokens, cache))

    def release(self) -> None:
        """Nothing is held."""


class Decoding:
    """The decoder's state while captions grow."""

    def __init__(
        self, decoder: TextDecoder, runner: Runner, states: Tensor, requests: Sequence[Request]
    ) -> None:
        """Project the image states.

        Args:
            decoder: reads the prompts.
            runner: reads what is generated.
            states: `[B, N, W]`.
            requests: B, all with the same number of captions.
        """
        self.device = states.device
        self.captions = requests[0].captions
        self.step = 0
        self._decoder, self._runner = decoder, runner
        self._prompt_slots = max(len(request.prompt) for request in requests)
        steps = max(request.options.max_new_tokens for request in requests)
        slots = self._prompt_slots + self.captions * steps
        self._cache = runner.look(states, self.captions, slots)
        self._lengths = torch.tensor([len(one.prompt) for one in requests], device=self.device)
        self._padded = len({len(one.prompt) for one in requests}) > 1
        # `[B, K, P + steps]`; what precedes a prompt is its first token, [DEC], which a penalty on
        # repetition has seen there anyway.
        width = self._prompt_slots + steps
        rows = [
            (one.prompt[0],) * (self._prompt_slots - len(one.prompt)) + one.prompt
            for one in requests
        ]
        self._ids = torch.zeros(
            len(rows), self.captions, width, dtype=torch.long, device=self.device
        )
        self._ids[:, :, : self._prompt_slots] = torch.tensor(rows, device=self.device)[:, None]
        # `[B, K, slots]`: the slots each caption descends from.
        self._seen = torch.zeros(
            len(rows), self.captions, slots, dtype=torch.bool, device=self.device
        )
        self._seen[:, :, : self._prompt_slots] = (
            torch.arange(self._prompt_slots, device=self.device) >= self._begin[:, None]
        )[:, None]

    @property
    def _begin(self) -> Tensor:
        """`[B]`: the slot of each image's [DEC]."""
        return self._prompt_slots - self._lengths

    @property
    def history(self) -> History:
        """Prompts and what has been chosen so far."""
        ids = self._ids[:, :, : self._prompt_slots + self.step]
        return History(ids, self._begin, self.step)

    def generated(self) -> Tensor:
        """`[B, K, step]`: what has been chosen so far."""
        return self._ids[:, :, self._prompt_slots : self._prompt_slots + self.step]

    def begin(self) -> Tensor:
        """Read the prompts, once per image.

        Returns:
            float32 logits `[B, K, V]` of the first token, the same for every k.
        """
        slots = torch.arange(self._prompt_slots, device=self.device)
        own = slots >= self._begin[:, None]
        # `[B, P, P]`. What precedes a prompt sees itself: of nothing there is no softmax.
        sees = (slots <= slots[:, None]) & own[:, None, :]
        sees |= torch.eye(len(slots), dtype=torch.bool, device=self.device)
        tokens = Tokens(
            ids=self._ids[:, 0, : self._prompt_slots],
            positions=(slots - self._begin[:, None]).clamp(min=0),
            slots=slots,
            used=len(slots),
            mask=self._additive(sees),
        )
        read = self._decoder(tokens, self._cache)
        logits: Tensor = self._decoder.logits(read[:, -1:])
        return logits.expand(-1, self.captions, -1)

    def advance(self, tokens: Tensor, parents: Tensor | None) -> Tensor:
        """Append a token to each caption and read it.

        Args:
            tokens: `[B, K]`.
            parents: `[B, K]`: the captions they continue; None where each continues itself.

        Returns:
            float32 logits `[B, K, V]` of the next token.
        """
        if parents is not None:
            self._ids = of_parents(self._ids, parents)
            self._seen = of_parents(self._seen, parents)
        self._ids[:, :, self._prompt_slots + self.step] = tokens
        first = self._prompt_slots + self.step * self.captions
        used = first + self.captions
        self._seen[:, :, first:used] = torch.eye(
            self.captions, dtype=torch.bool, device=self.device
        )
        masked = self._padded or self.captions > 1
        positions = (self._lengths + self.step)[:, None].expand(-1, self.captions)
        self.step += 1
        return self._runner.read(
            Tokens(
                ids=tokens,
                positions=positions,
                slots=torch.arange(first, used, device=self.device),
                used=used,
                mask=self._additive(self._seen[:, :, :used]) if masked else None,
            ),
            self._cache,
        )

    def keep(self, images: Sequence[int]) -> None:
        """Go on with these images, as `without` orders them."""
        order = torch.tensor(images, device=self.device)
        self._lengths, self._ids, self._seen = (
            tensor[order] for tensor in (self._lengths, self._ids, self._seen)
        )
        # The image states' keys and values are large: only those that fill a gap are moved.
        gaps = [place for place, image in enumerate(images) if image != place]
        if gaps:
            source, target = order[gaps], torch.tensor(gaps, device=self.device)
            for tensor in itertools.chain.from_iterable(self._cache.everything()):
                tensor[target] = tensor[source]
        self._cache = self._cache.first(len(images))

    def _additive(self, sees: Tensor) -> Tensor:
        """Bool `[B, Q, S]` to the mask of `Tokens`."""
        mask = torch.zeros(sees.shape, dtype=self._cache.token_keys[0].dtype, device=sees.device)
        return mask.masked_fill_(~sees, -math.inf)[:, None]


def without(finished: Sequence[bool]) -> list[int]:
    """The images that are not finished, moved as little as can be: from behind into the gaps."""
    going = [image for image, ended in enumerate(finished) if not ended]
    behind = iter(reversed([image for image in going if image >= len(going)]))
    return [next(behind) if finished[place] else place for place in range(len(going))]


def of_parents(values: Tensor, parents: Tensor) -> Tensor:
    """`[B, K, …]`, of each caption those of its parent; parents are `[B, any number]`."""
    return values[torch.arange(len(values), device=values.device)[:, None], parents]

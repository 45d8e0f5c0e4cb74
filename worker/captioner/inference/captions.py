"""Captions as tensors while they grow: what beam search and sampling have in common.

Letters as in blip.py, and K captions of each image, P the length of the longest prompt. Prompts may
differ in length: shorter ones stand at the right of the prompt's slots, and what is left of them is
never seen. The token that caption k gets at step t goes to slot P + t × K + k.

Everything that changes from step to step is in tensors, the step's own number too: so a step is the
same work each time, and can be recorded once and replayed (cuda_graphs.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from captioner.inference.blip import Tokens
from captioner.inference.rows import Rows
from captioner.options import GenerationOptions

#: Lengths of prompts are rounded up to it, where sizes are rounded at all.
_PROMPT_MULTIPLE = 8


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


@dataclass(slots=True)
class Captions(Rows):
    """What the captions of B images are so far; the newest token of each is yet to be read."""

    #: `[B, K, W]`: prompts and what has been chosen. What precedes and what follows them is [DEC],
    #: which a penalty on repetition has seen there anyway.
    ids: Tensor
    #: Bool `[B, K, S]`: the slots of the cache that each caption descends from.
    seen: Tensor
    #: `[B]`: tokens of the prompts.
    lengths: Tensor
    #: Where in `ids` the next token goes, the same for all images.
    end: Tensor
    #: Tokens chosen.
    step: Tensor
    #: P.
    prompt_slots: int

    @property
    def begin(self) -> Tensor:
        """`[B]`: where in `ids`, and in which slot, each image's [DEC] is."""
        return self.prompt_slots - self.lengths

    def prompts(self, dtype: torch.dtype) -> Tokens:
        """The prompts, once per image, as the decoder reads them."""
        order = torch.arange(self.prompt_slots, device=self.ids.device)
        # `[B, P, P]`. What precedes a prompt sees itself: of nothing there is no softmax.
        sees = (order <= order[:, None]) & (order >= self.begin[:, None])[:, None, :]
        sees |= torch.eye(self.prompt_slots, dtype=torch.bool, device=order.device)
        sees = functional.pad(sees, (0, self.seen.shape[2] - self.prompt_slots))
        positions = (order - self.begin[:, None]).clamp(min=0)
        ids = self.ids[:, 0, : self.prompt_slots]
        return Tokens(ids, positions, order, additive(sees, dtype))

    def take(self, tokens: Tensor, parents: Tensor | None) -> None:
        """Append a token to each caption.

        Args:
            tokens: `[B, K]`.
            parents: `[B, K]`: the captions they continue; None where each continues itself.
        """
        images, count, _ = self.ids.shape
        if parents is not None:
            self.ids.copy_(of_parents(self.ids, parents))
            self.seen.copy_(of_parents(self.seen, parents))
        self.ids.index_copy_(2, self.end.view(1), tokens[:, :, None])
        own = torch.eye(count, dtype=torch.bool, device=tokens.device)
        self.step += 1
        self.end += 1
        self.seen.index_copy_(2, self._slots(), own.expand(images, count, count))

    def unread(self, dtype: torch.dtype) -> Tokens:
        """The newest token of each caption, as the decoder reads it."""
        newest = self.ids.index_select(2, self.end.view(1) - 1)[:, :, 0]
        positions = (self.lengths + self.step - 1)[:, None].expand_as(newest)
        return Tokens(newest, positions, self._slots(), additive(self.seen, dtype))

    def _slots(self) -> Tensor:
        """`[K]`: the newest tokens' slots."""
        count = self.ids.shape[1]
        # Not P, but what two tensors say of it: a recording is to serve prompts of other lengths.
        first = self.end - self.step + (self.step - 1) * count
        return first + torch.arange(count, device=first.device)


def start_captions(requests: Sequence[Request], multiple: int) -> Captions:
    """Captions of which there are only the prompts, in main memory.

    Args:
        requests: B, all with the same number of captions.
        multiple: sizes are rounded up to it, so that batches share memory.
    """
    count = requests[0].captions
    prompt_slots = max(len(request.prompt) for request in requests)
    if prompt_slots > 1:  # no prompt is what most requests have
        prompt_slots = _round_up(prompt_slots, min(multiple, _PROMPT_MULTIPLE))
    steps = max(request.options.max_new_tokens for request in requests)
    width = _round_up(prompt_slots + steps, multiple)
    rows = [
        [one.prompt[0]] * (prompt_slots - len(one.prompt))
        + list(one.prompt)
        + [one.prompt[0]] * (width - prompt_slots)
        for one in requests
    ]
    lengths = torch.tensor([len(one.prompt) for one in requests])
    slots = torch.arange(_round_up(prompt_slots + count * steps, multiple))
    seen = (slots < prompt_slots) & (slots >= prompt_slots - lengths[:, None])
    return Captions(
        ids=torch.tensor(rows)[:, None].repeat(1, count, 1),
        seen=seen[:, None].repeat(1, count, 1),
        lengths=lengths,
        end=torch.tensor(prompt_slots),
        step=torch.tensor(0),
        prompt_slots=prompt_slots,
    )


def additive(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """Bool `[B, Q, S]` to the mask of `Tokens`."""
    mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
    return mask.masked_fill_(~sees, -math.inf)[:, None]


def of_parents(values: Tensor, parents: Tensor) -> Tensor:
    """`[B, K, …]`, of each caption those of its parent; parents are `[B, any number]`."""
    return values[torch.arange(len(values), device=values.device)[:, None], parents]


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

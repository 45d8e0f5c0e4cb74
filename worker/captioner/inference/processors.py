"""Rules that change scores before a token is chosen, in transformers' order and arithmetic.

Repetition, n-grams, least length; then, for sampling alone, temperature, top-k, top-p. Each image
has its own values; scores are `[B, K, V]`, where K is what is generated of one image. Greedy
search and sampling give logits, beam search gives log-probabilities, which are then no longer
normalised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captioner.inference.captions import Captions, Request
from captioner.inference.rows import Rows
from captioner.options import GenerationOptions


@dataclass(slots=True)
class Processors(Rows):
    """The options of B images as tensors `[B, 1, 1]`."""

    repetition: Tensor
    ngrams: Tensor
    least: Tensor
    #: The token that ends a caption.
    sep: int
    #: What anybody asks for; it changes nothing for the others.
    repetition_asked: bool
    ngram_sizes: tuple[int, ...]
    least_asked: bool

    @classmethod
    def of(cls, requests: Sequence[Request], captions: Captions, sep: int) -> Processors:
        """The options of these requests."""
        device = captions.ids.device
        options = [request.options for request in requests]

        def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1)

        return cls(
            repetition=column([one.repetition_penalty for one in options], torch.float32),
            ngrams=column([one.no_repeat_ngram_size for one in options], torch.long),
            least=column([one.min_new_tokens for one in options], torch.long),
            sep=sep,
            repetition_asked=any(one.repetition_penalty != 1 for one in options),
            ngram_sizes=tuple(sorted({one.no_repeat_ngram_size for one in options} - {0})),
            least_asked=any(one.min_new_tokens for one in options),
        )

    def __call__(self, scores: Tensor, captions: Captions) -> Tensor:
        """New scores `[B, K, V]`; the given ones stay as they are."""
        if self.repetition_asked:
            scores = penalise_repetition(scores, captions.ids, self.repetition)
        for size in self.ngram_sizes:
            scores = block_ngrams(scores, captions, size, self.ngrams == size)
        if self.least_asked:
            scores = scores.clone()
            early = (captions.step < self.least)[:, :, 0]
            scores[..., self.sep] = scores[..., self.sep].masked_fill(early, -math.inf)
        return scores


def penalise_repetition(scores: Tensor, ids: Tensor, penalty: Tensor) -> Tensor:
    """Divide the scores of tokens that occurred by a penalty, or multiply where below 0.

    Args:
        scores: `[B, K, V]`.
        ids: `[B, K, W]`; a token that occurs twice is penalised once.
        penalty: `[B, 1, 1]`.
    """
    seen = scores.gather(2, ids)
    return scores.scatter(2, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def block_ngrams(scores: Tensor, captions: Captions, size: int, asked: Tensor) -> Tensor:
    """Give -inf to tokens that would end an n-gram for the second time.

    Args:
        scores: `[B, K, V]`.
        captions: what they are so far.
        size: n.
        asked: bool `[B, 1, 1]`, the images that this applies to.
    """
    ids, end = captions.ids, captions.end
    windows = ids.shape[2] - size + 1
    if windows < 1:
        return scores
    starts = torch.arange(windows, device=ids.device)
    own = (starts >= captions.begin[:, None]) & (starts + size <= end)
    match = (own[:, None, :] & asked).expand(*ids.shape[:2], windows)
    for offset in range(size - 1):
        # Where there are not as many yet, no window is their own.
        last = (end - size + 1 + offset).clamp(min=0)
        match = match & (ids[..., offset : offset + windows] == ids.index_select(2, last.view(1)))
    # Tokens that are not to be blocked go to a column behind the vocabulary.
    size_of_vocabulary = scores.shape[2]
    tokens = torch.where(match, ids[..., size - 1 :], size_of_vocabulary)
    blocked = torch.zeros(
        *scores.shape[:2], size_of_vocabulary + 1, dtype=torch.bool, device=scores.device
    )
    return scores.masked_fill(blocked.scatter_(2, tokens, True)[..., :-1], -math.inf)  # noqa: FBT003 (as torch has it)


def warp(scores: Tensor, options: GenerationOptions) -> Tensor:
    """The scores `[…, V]` of one image that sampling draws from: temperature, top-k, top-p."""
    if options.temperature != 1:
        scores = scores / options.temperature
    if 0 < options.top_k < scores.shape[-1]:
        least = scores.topk(options.top_k).values[..., -1:]
        scores = scores.masked_fill(scores < least, -math.inf)
    if options.top_p < 1:
        ascending, order = scores.sort()
        unlikely = ascending.softmax(-1).cumsum(-1) <= 1 - options.top_p
        unlikely[..., -1] = False
        scores = scores.masked_fill(unlikely.scatter(-1, order, unlikely), -math.inf)
    return scores

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

from captioner.options import GenerationOptions


@dataclass(frozen=True, slots=True)
class History:
    """Everything before the token to be chosen, [DEC] and prompt included."""

    #: `[B, K, L]`, ending at the newest token; shorter ones begin with [DEC] repeated.
    ids: Tensor
    #: `[B]`: where each image's own begins.
    begin: Tensor
    #: Generated tokens in it, the prompt's not counted.
    generated: int


class Processors:
    """The options of B images as tensors."""

    def __init__(
        self, options: Sequence[GenerationOptions], sep: int, device: torch.device
    ) -> None:
        """`sep` is the token that ends a caption."""
        self._options = list(options)
        self._sep, self._device = sep, device
        self._spread()

    def keep(self, images: Sequence[int]) -> None:
        """Go on with these images, in this order."""
        self._options = [self._options[image] for image in images]
        self._spread()

    def _spread(self) -> None:
        options = self._options
        self._repetition = self._column([one.repetition_penalty for one in options])
        self._ngrams = self._column([one.no_repeat_ngram_size for one in options], torch.long)
        self._ngram_sizes = {one.no_repeat_ngram_size for one in options} - {0}
        self._least = self._column([one.min_new_tokens for one in options], torch.long)
        self._repeats = any(one.repetition_penalty != 1 for one in options)
        self._longest_least = max((one.min_new_tokens for one in options), default=0)

    def _column(self, values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self._device).view(-1, 1, 1)

    def __call__(self, scores: Tensor, history: History) -> Tensor:
        """New scores; the given ones stay as they are."""
        if self._repeats:
            scores = penalise_repetition(scores, history.ids, self._repetition)
        for size in sorted(self._ngram_sizes):
            asked = self._ngrams == size
            scores = block_ngrams(scores, history.ids, history.begin, size, asked)
        if history.generated < self._longest_least:
            scores = scores.clone()
            sep = scores[..., self._sep]
            early = (history.generated < self._least).view(-1, 1)
            scores[..., self._sep] = sep.masked_fill(early, -math.inf)
        return scores


def penalise_repetition(scores: Tensor, ids: Tensor, penalty: Tensor) -> Tensor:
    """Divide the scores of tokens that occurred by a penalty, or multiply where below 0.

    Args:
        scores: `[B, K, V]`.
        ids: `[B, K, L]`; a token that occurs twice is penalised once.
        penalty: `[B, 1, 1]`.
    """
    seen = scores.gather(2, ids)
    return scores.scatter(2, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def block_ngrams(scores: Tensor, ids: Tensor, begin: Tensor, size: int, asked: Tensor) -> Tensor:
    """Give -inf to tokens that would end an n-gram for the second time.

    Args:
        scores: `[B, K, V]`.
        ids: `[B, K, L]`.
        begin: `[B]`, as in `History`.
        size: n.
        asked: bool `[B, 1, 1]`, the images that this applies to.
    """
    windows = ids.shape[2] - size + 1
    if windows < 1:
        return scores
    starts = torch.arange(windows, device=ids.device)
    match = ((starts >= begin[:, None])[:, None, :] & asked).expand(*ids.shape[:2], windows)
    for offset in range(size - 1):
        match = match & (ids[..., offset : offset + windows] == ids[..., windows + offset, None])
    # Tokens that are not to be blocked go to a column behind the vocabulary.
    size_of_vocabulary = scores.shape[2]
    tokens = torch.where(match, ids[..., size - 1 :], size_of_vocabulary)
    blocked = torch.zeros(
        *scores.shape[:2], size_of_vocabulary + 1, dtype=torch.bool, device=scores.device
    )
    return scores.masked_fill(blocked.scatter_(2, tokens, True)[..., :-1], -math.inf)  # noqa: FBT003


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

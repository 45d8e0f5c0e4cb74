"""Beam search, as transformers 5.23 does it with `early_stopping=False`.

Of the 2K best continuations of K beams, those that do not end go on, and those that end are
finished if they are among the K best; of the finished the K best are kept, by the sum of their
log-probabilities divided by length ** length_penalty. An image ends when K are finished and the
best beam, ended now, would not be better than the worst of them, or at its greatest length.

Log-probabilities are those of the model changed by the processors, in float32 and not normalised
again. Constants and order of the arithmetic are transformers', so that ties are, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from captioner.inference.captions import Captions, Generated, Request, of_parents
from captioner.inference.decoding import Search

#: Added to scores that must not be chosen; transformers' number.
_NEVER = -1.0e9


@dataclass(slots=True)
class BeamSearch(Search):
    """The beams of B images, K each, and the K best captions of each image that have ended."""

    #: `[B, K]`: sums of processed log-probabilities. At first only one beam of each counts.
    totals: Tensor
    #: `[B, K]`: sums of the model's own.
    plain: Tensor
    #: `[B]`.
    ended: Tensor
    #: `[B]`: most new tokens.
    longest: Tensor
    #: `[B, W]`: length ** length_penalty of the lengths from 1.
    divisors: Tensor
    #: `[B, K, W]`: the finished, prompts included; `[B, K]`: their new tokens.
    finished: Tensor
    lengths: Tensor
    #: `[B, K]`: what they are ranked by, the sums of the model's own, and whether there is one.
    scores: Tensor
    finished_plain: Tensor
    there: Tensor
    #: The token that ends a caption.
    sep: int
    recordable: bool = True

    normalised: ClassVar[bool] = True

    @classmethod
    def of(cls, requests: Sequence[Request], captions: Captions, sep: int) -> BeamSearch:
        """A search at its beginning."""
        images, count, width = captions.ids.shape
        device = captions.ids.device
        totals = torch.zeros(images, count, device=device)
        totals[:, 1:] = _NEVER
        longest = [request.options.max_new_tokens for request in requests]
        divisors = torch.ones(images, width)
        for row, most, request in zip(divisors, longest, requests, strict=True):
            penalty = request.options.length_penalty
            row[:most] = torch.tensor([length**penalty for length in range(1, most + 1)])
        return cls(
            totals=totals,
            plain=torch.zeros_like(totals, dtype=torch.float64),
            ended=torch.zeros(images, dtype=torch.bool, device=device),
            longest=torch.tensor(longest, device=device),
            divisors=divisors.to(device),
            finished=torch.zeros_like(captions.ids),
            lengths=torch.zeros_like(totals, dtype=torch.long),
            scores=torch.full_like(totals, _NEVER),
            finished_plain=torch.zeros_like(totals, dtype=torch.float64),
            there=torch.zeros_like(totals, dtype=torch.bool),
            sep=sep,
        )

    def choose(self, plain: Tensor, processed: Tensor, captions: Captions) -> tuple[Tensor, Tensor]:
        """See `Search.choose`."""
        count, vocabulary = processed.shape[1:]
        last = (captions.step + 1 >= self.longest)[:, None]
        totals = processed + self.totals[:, :, None]
        best, index = totals.flatten(1).topk(2 * count)
        parents, tokens = index // vocabulary, index % vocabulary
        own = plain.flatten(1).gather(1, index) + self.plain.gather(1, parents)
        ends = (tokens == self.sep) | last

        going = best + ends * _NEVER
        chosen = going.topk(count).indices
        self.totals.copy_(going.gather(1, chosen))
        self.plain.copy_(own.gather(1, chosen))

        divisor = self.divisors.index_select(1, captions.step.view(1))
        ends[:, count:] = False
        ends &= ~self.ended[:, None]
        ids = of_parents(captions.ids, parents)
        ids.index_copy_(2, captions.end.view(1), tokens[:, :, None])
        self._finish(ids, captions.step + 1, best / divisor, own, ends)

        # Could a beam that goes on still be better than the worst that is finished?
        hope = self.totals[:, :1] / divisor > self._worst()
        self.ended |= ~hope.any(1) | last[:, 0]
        return tokens.gather(1, chosen), parents.gather(1, chosen)

    def results(self, captions: Captions, images: Sequence[int]) -> list[list[Generated]]:
        """See `Search.results`."""
        count = self.totals.shape[1]
        rows = torch.tensor(images, device=self.totals.device)
        # One transfer each: every one waits for the device.
        tokens = self.finished[rows, :, captions.prompt_slots :].tolist()
        lengths, plain = self.lengths[rows].tolist(), self.finished_plain[rows].tolist()
        scores = self.scores[rows].tolist()
        return [
            [
                Generated(tuple(tokens[i][k][: lengths[i][k]]), plain[i][k], scores[i][k])
                for k in range(count)
            ]
            for i in range(len(images))
        ]

    def _finish(
        self, ids: Tensor, length: Tensor, scores: Tensor, plain: Tensor, ends: Tensor
    ) -> None:
        """Take those captions `[B, any number, W]` that end into the best."""
        scores = torch.cat((self.scores, scores + ~ends * _NEVER), dim=1)
        count = self.scores.shape[1]
        best = scores.topk(count).indices
        # An image that has ended may be counted further, and topk would reorder equal scores.
        best = torch.where(self.ended[:, None], torch.arange(count, device=best.device), best)
        self.scores.copy_(scores.gather(1, best))
        for kept, new in (
            (self.lengths, length.expand_as(ends)),
            (self.finished_plain, plain),
            (self.there, ends),
        ):
            kept.copy_(torch.cat((kept, new), dim=1).gather(1, best))
        self.finished.copy_(of_parents(torch.cat((self.finished, ids), dim=1), best))

    def _worst(self) -> Tensor:
        """`[B, K]`: the score to be beaten, which is any while there are fewer than K."""
        least = self.scores.min(1, keepdim=True).values
        return least.expand_as(self.there).masked_fill(~self.there, _NEVER)

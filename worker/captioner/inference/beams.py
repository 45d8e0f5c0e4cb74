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

import torch
from torch import Tensor

from captioner.inference.decoding import Decoding, Generated, Request, of_parents

#: Added to scores that must not be chosen; transformers' number.
_NEVER = -1.0e9


class BeamSearch:
    """The beams of B images, K each."""

    def __init__(self, requests: Sequence[Request], sep: int, device: torch.device) -> None:
        """`sep` is the token that ends a caption."""
        options = [request.options for request in requests]
        self._sep, self._captions = sep, requests[0].captions
        self._longest = torch.tensor([one.max_new_tokens for one in options], device=device)
        self._penalties = [one.length_penalty for one in options]
        shape = (len(requests), self._captions)
        self._finished = _Finished(shape, int(self._longest.max()), device)
        #: `[B, K]`: sums of processed log-probabilities. At first only one beam of each counts.
        self._totals = torch.zeros(shape, device=device)
        self._totals[:, 1:] = _NEVER
        #: `[B, K]`: sums of the model's own.
        self._plain = torch.zeros(shape, dtype=torch.float64, device=device)
        #: `[B]`.
        self.ended = torch.zeros(len(requests), dtype=torch.bool, device=device)

    def choose(self, plain: Tensor, processed: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor]:
        """Choose the beams' next tokens.

        Args:
            plain: `[B, K, V]`, the model's log-probabilities.
            processed: `[B, K, V]`, changed by the processors.
            decoding: holds what the beams are so far.

        Returns:
            Tokens `[B, K]`, and the beams `[B, K]` that they continue.
        """
        length, vocabulary = decoding.step + 1, processed.shape[2]
        totals = processed + self._totals[:, :, None]
        best, index = totals.flatten(1).topk(2 * self._captions)
        parents, tokens = index // vocabulary, index % vocabulary
        own = plain.flatten(1).gather(1, index) + self._plain.gather(1, parents)
        ends = (tokens == self._sep) | (length >= self._longest)[:, None]

        going = best + ends * _NEVER
        chosen = going.topk(self._captions).indices
        self._totals = going.gather(1, chosen)
        self._plain = own.gather(1, chosen)

        divisors = torch.tensor([length**penalty for penalty in self._penalties])
        divisors = divisors.to(best)[:, None]
        ends[:, self._captions :] = False
        ends &= ~self.ended[:, None]
        captions = torch.cat((of_parents(decoding.generated(), parents), tokens[:, :, None]), dim=2)
        self._finished.add(captions, best / divisors, own, ends)

        # Could a beam that goes on still be better than the worst that is finished?
        hope = self._totals[:, :1] / divisors > self._finished.worst()
        self.ended |= ~hope.any(1) | (length >= self._longest)
        return tokens.gather(1, chosen), parents.gather(1, chosen)

    def results(self, image: int, wanted: int) -> list[Generated]:
        """The finished captions of one image, best first."""
        return self._finished.read(image, wanted)

    def keep(self, images: Sequence[int]) -> None:
        """Go on with these images, in this order."""
        order = torch.tensor(images, device=self.ended.device)
        self._longest, self._totals = self._longest[order], self._totals[order]
        self._plain, self.ended = self._plain[order], self.ended[order]
        self._penalties = [self._penalties[image] for image in images]
        self._finished.keep(order)


class _Finished:
    """The K best captions of each image that have ended."""

    def __init__(self, shape: tuple[int, int], longest: int, device: torch.device) -> None:
        self._count = shape[1]
        self._tokens = torch.zeros(*shape, longest, dtype=torch.long, device=device)
        self._lengths = torch.zeros(shape, dtype=torch.long, device=device)
        self._scores = torch.full(shape, _NEVER, device=device)
        self._plain = torch.zeros(shape, dtype=torch.float64, device=device)
        self._there = torch.zeros(shape, dtype=torch.bool, device=device)

    def add(self, tokens: Tensor, scores: Tensor, plain: Tensor, ends: Tensor) -> None:
        """Take captions `[B, any number, length]` into the best, those that end."""
        padding = self._tokens.shape[2] - tokens.shape[2]
        lengths = torch.full_like(ends, tokens.shape[2], dtype=torch.long)
        tokens = torch.nn.functional.pad(tokens, (0, padding))
        scores = torch.cat((self._scores, scores + ~ends * _NEVER), dim=1)
        self._scores, best = scores.topk(self._count)
        self._tokens = of_parents(torch.cat((self._tokens, tokens), dim=1), best)
        self._lengths = torch.cat((self._lengths, lengths), dim=1).gather(1, best)
        self._plain = torch.cat((self._plain, plain), dim=1).gather(1, best)
        self._there = torch.cat((self._there, ends), dim=1).gather(1, best)

    def worst(self) -> Tensor:
        """`[B, K]`: the score to be beaten, which is any while there are fewer than K."""
        return torch.where(self._there, self._scores.min(1, keepdim=True).values, _NEVER)

    def read(self, image: int, wanted: int) -> list[Generated]:
        """Those of one image, best first."""
        tokens, lengths = self._tokens[image].tolist(), self._lengths[image].tolist()
        plain, scores = self._plain[image].tolist(), self._scores[image].tolist()
        return [
            Generated(tuple(tokens[k][: lengths[k]]), plain[k], scores[k]) for k in range(wanted)
        ]

    def keep(self, order: Tensor) -> None:
        self._tokens, self._lengths = self._tokens[order], self._lengths[order]
        self._scores, self._plain = self._scores[order], self._plain[order]
        self._there = self._there[order]

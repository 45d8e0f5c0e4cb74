"""Whether two models that differ in last bits say the same, and where not, whether bits explain it.

Both sides generate T tokens, no fewer and no more: [SEP] is out of the question at every step, and
nothing ends early. Then a search is a chain of choices, each a comparison of sums, and a model
whose sums are at most e away from float32's can choose otherwise only where float32's deciding
margin is below 2e. A caption that differs without that has another cause: a mistake.

Letters: T steps, B images, K beams (1 is greedy), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Trace:
    """How float32 came to its captions."""

    #: float32 `[T, B, K, V]`, as the model gave them before each choice.
    logits: Tensor
    #: `[T, B, K]`: what was chosen, and which beam it continues.
    tokens: Tensor
    parents: Tensor
    #: B captions of T token ids, as transformers returned them.
    captions: list[tuple[int, ...]]
    #: B times: do these choices lead to that caption?
    retraced: list[bool]
    #: The token that ends a caption.
    sep: int

    def first(self, images: int) -> Trace:
        """The same of the first images alone."""
        return Trace(
            self.logits[:, :images],
            self.tokens[:, :images],
            self.parents[:, :images],
            self.captions[:images],
            self.retraced[:images],
            self.sep,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a free run and a teacher-forced one compare with float32."""

    #: Share of choices, along the tokens that float32 chose, whose likeliest token is float32's.
    top1_agreement: float
    #: Captions that differ from float32's.
    flips: int
    #: Of these, those that differences in the last bits do not explain.
    unexplained_flips: int
    #: Greatest difference of a logit along the tokens that float32 chose.
    greatest_difference: float


def join(traces: Sequence[Trace]) -> Trace:
    """One trace of all images of several."""
    return Trace(
        torch.cat([one.logits for one in traces], dim=1),
        torch.cat([one.tokens for one in traces], dim=1),
        torch.cat([one.parents for one in traces], dim=1),
        [caption for one in traces for caption in one.captions],
        [right for one in traces for right in one.retraced],
        traces[0].sep,
    )


def retrace(logits: Tensor, captions: list[tuple[int, ...]], sep: int) -> Trace:
    """Find the choices behind captions, which transformers does not tell, by making them again.

    Args:
        logits: float32 `[T, B, K, V]`, of the beams in transformers' order.
        captions: B of T token ids, what transformers made of these logits.
        sep: the token that ends a caption.
    """
    steps, images, beams, vocabulary = logits.shape
    running = _start(images, beams)
    said = torch.zeros(images, beams, 0, dtype=torch.long)
    chosen: list[tuple[Tensor, Tensor]] = []
    for step in range(steps):
        best, index = _totals(logits[step], running, sep).flatten(1).topk(beams)
        parents, tokens = index // vocabulary, index % vocabulary
        said = torch.cat((_of_parents(said, parents), tokens[:, :, None]), dim=2)
        chosen.append((tokens, parents))
        running = best if beams > 1 else running
    return Trace(
        logits,
        torch.stack([tokens for tokens, _ in chosen]),
        torch.stack([parents for _, parents in chosen]),
        captions,
        [tuple(row) == one for row, one in zip(said[:, 0].tolist(), captions, strict=True)],
        sep,
    )


def judge(trace: Trace, logits: Tensor, captions: Sequence[tuple[int, ...]]) -> Verdict:
    """Compare a model with float32.

    Args:
        trace: float32's.
        logits: the model's, `[T, B, K, V]`, teacher-forced along the trace.
        captions: B of T token ids, which the model chose freely.
    """
    steps, images, beams, _ = trace.logits.shape
    exact, ours = _start(images, beams), _start(images, beams)
    differs, margins, errors = [], [], []
    agreed, difference = 0, 0.0
    for step in range(steps):
        a, b = trace.logits[step], logits[step]
        agreed += int((_likeliest(a, trace.sep) == _likeliest(b, trace.sep)).sum())
        difference = max(difference, float((a - b).abs().max()))
        # `[B, K × V]`. A beam that does not count yet is -inf on both sides, and nan less itself.
        a = _totals(a, exact, trace.sep).flatten(1)
        b = _totals(b, ours, trace.sep).flatten(1)
        errors.append((a - b).abs().nan_to_num(0).amax(1))
        # In between it matters which K go on, in the end which one is the best.
        wanted = 1 if step == steps - 1 else beams
        best = a.topk(wanted + 1).values
        margins.append(best[:, wanted - 1] - best[:, wanted])
        differs.append((_chosen(a, wanted) != _chosen(b, wanted)).any(1))
        if beams > 1:
            index = trace.parents[step] * trace.logits.shape[3] + trace.tokens[step]
            exact, ours = a.gather(1, index), b.gather(1, index)
    flipped = [image for image in range(images) if captions[image] != trace.captions[image]]
    unexplained = 0
    for image in flipped:
        if beams == 1:
            first = _first_difference(captions[image], trace.captions[image])
        else:
            # A beam that loses leaves no trace in the caption: where the searches part is known
            # from the teacher-forced run alone.
            first = next((k for k, different in enumerate(differs) if different[image]), None)
        explained = (
            trace.retraced[image]
            and first is not None
            and bool(margins[first][image] < 2 * errors[first][image])
        )
        unexplained += not explained
    return Verdict(agreed / (steps * images * beams), len(flipped), unexplained, difference)


def _start(images: int, beams: int) -> Tensor:
    """`[B, K]` sums before the first token: all beams are the same one, so only one counts."""
    running = torch.zeros(images, beams)
    running[:, 1:] = -math.inf
    return running


def _totals(logits: Tensor, running: Tensor, sep: int) -> Tensor:
    """What a choice compares, `[B, K, V]`: sums of log-probabilities; greedy, the logits alone."""
    scores = logits.log_softmax(-1) if logits.shape[1] > 1 else logits.clone()
    scores[..., sep] = -math.inf
    return scores + running[:, :, None]


def _likeliest(logits: Tensor, sep: int) -> Tensor:
    """`[B, K, V]` to `[B, K]`."""
    return logits.index_fill(-1, torch.tensor([sep]), -math.inf).argmax(-1)


def _chosen(totals: Tensor, wanted: int) -> Tensor:
    """`[B, K × V]` to the indices `[B, wanted]` of the greatest, in ascending order."""
    return totals.topk(wanted).indices.sort().values


def _of_parents(values: Tensor, parents: Tensor) -> Tensor:
    """`[B, K, …]`, of each beam those of its parent `[B, K]`."""
    return values[torch.arange(len(values))[:, None], parents]


def _first_difference(left: tuple[int, ...], right: tuple[int, ...]) -> int | None:
    """Where two captions part; None where one merely ends earlier, which no near-tie explains."""
    return next((k for k, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)

"""The comparison: both sides in one run, in alternation, over batches and beams."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from captioner.inference.benchmark.agreement import Trace, join, judge
from captioner.inference.benchmark.floor import measure_encoder
from captioner.inference.benchmark.machine import timed
from captioner.inference.benchmark.sides import Captions, Ours, Theirs
from captioner.inference.checkpoint import Checkpoint
from captioner.inference.devices import dtype_name
from captioner.inference.freed_memory import keep_freed_memory
from captioner.inference.pixels import Picture, normalise, resize
from captioner.inference.tokenizer import load_tokenizer
from captioner.options import GenerationOptions

#: Pictures that float32 captions at once. What it says of one does not depend on the others.
_TRACED_AT_ONCE = 4

_Side = TypeVar("_Side", Ours, Theirs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be measured."""

    batches: tuple[int, ...]
    beams: tuple[int, ...]
    #: New tokens per caption, no fewer and no more.
    tokens: int = 16
    #: Timed runs of each side, of which the median counts.
    rounds: int = 3
    prompt: str | None = None
    #: Time transformers also as it loads by default, in float32; once per row.
    also_default: bool = False
    encoder_batch: int = 8

    @property
    def pictures(self) -> int:
        """How many are needed."""
        return max(*self.batches, self.encoder_batch)

    @property
    def steps(self) -> int:
        """How often progress is told."""
        rows = len(self.batches) * len(self.beams)
        traced = math.ceil(max(self.batches) / _TRACED_AT_ONCE)
        return 2 + traced + rows * (1 + self.rounds) + 1 + self.rounds

    def options(self, beams: int) -> GenerationOptions:
        """What both sides are asked for."""
        return GenerationOptions(
            prompt=self.prompt,
            num_beams=beams,
            min_new_tokens=self.tokens,
            max_new_tokens=self.tokens,
        )


def compare(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    pictures: Sequence[Picture],
    plan: Plan,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure our backend against transformers.

    Args:
        checkpoint: run by both sides.
        device: of both sides.
        dtype: of both sides.
        pictures: at least `plan.pictures`.
        plan: what to measure.
        say: told what begins, `plan.steps` times.

    Returns:
        `rows`, one per batch and number of beams, with seconds per batch, and `encoder`.

    Raises:
        ModelLoadError: the model does not fit.
        JobError: the prompt is too long, or the device is full.
    """
    tokenizer = load_tokenizer(checkpoint.folder, checkpoint.architecture.text)
    for beams in plan.beams:  # before minutes go by
        tokenizer.prompt_ids(plan.options(beams))
    pixels = [resize(picture, checkpoint.pixels.size) for picture in pictures[: plan.pictures]]
    bench = _Bench(checkpoint, device, dtype, pixels, plan, say)
    with bench.models():
        rows = [
            bench.row(batch, beams) for batch, beams in itertools.product(plan.batches, plan.beams)
        ]
        encoder = measure_encoder(
            bench.ours,
            checkpoint.architecture.vision,
            pixels[: plan.encoder_batch],
            (device, dtype),
            plan.rounds,
            say,
        )
    return {"rows": rows, "encoder": {"dtype": dtype_name(dtype), **encoder}}


class _Bench:
    """Models, pictures and what float32 says of them."""

    ours: Ours
    theirs: Theirs
    default: Theirs | None

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        pixels: list[NDArray[np.uint8]],
        plan: Plan,
        say: Callable[[str], None],
    ) -> None:
        self._checkpoint, self._device, self._dtype = checkpoint, device, dtype
        self._pixels, self._plan, self._say = pixels, plan, say
        self._normal = torch.from_numpy(
            np.stack([normalise(one, checkpoint.pixels) for one in pixels])
        )
        self._traces: dict[int, Trace] = {}
        #: Bytes of the device that each model holds for good.
        self._held: dict[str, int] = {}

    @contextmanager
    def models(self) -> Iterator[None]:
        """Load them, float32 first: it is closed where it is not timed itself."""
        plan = self._plan
        self._say("loading transformers in float32")
        exact = self._load("default", Theirs, torch.float32)
        options = [plan.options(beams) for beams in plan.beams]
        parts = []
        for start in range(0, max(plan.batches), _TRACED_AT_ONCE):
            self._say("captions in float32, to compare with")
            end = min(start + _TRACED_AT_ONCE, max(plan.batches))
            parts.append(exact.trace(self._pixels[start:end], options))
        self._traces = {
            beams: join(traces) for beams, *traces in zip(plan.beams, *parts, strict=True)
        }
        same = self._dtype == torch.float32
        self.default = exact if plan.also_default and not same else None
        if not (same or plan.also_default):
            exact.close()
            self._held["default"] = 0
        self._say(f"loading both in {dtype_name(self._dtype)}")
        self.theirs = exact if same else self._load("theirs", Theirs, self._dtype)
        self.ours = self._load("ours", Ours, self._dtype)
        try:
            yield
        finally:
            for model in (exact, self.theirs, self.ours):
                model.close()

    def _load(self, name: str, kind: type[_Side], dtype: torch.dtype) -> _Side:
        before = self._allocated()
        model = kind(self._checkpoint, device=self._device, dtype=dtype)
        self._held[name] = self._allocated() - before
        return model

    def row(self, batch: int, beams: int) -> dict[str, Any]:
        """Measure one batch size with one number of beams."""
        plan, options = self._plan, self._plan.options(beams)
        what = f"batch {batch}, {beams} beams" if beams > 1 else f"batch {batch}, greedy"
        pixels, normal = self._pixels[:batch], self._normal[:batch]
        trace = self._traces[beams].first(batch)
        sides: dict[str, Callable[[], Captions]] = {
            "ours": lambda: self.ours.caption(pixels, options),
            "theirs": lambda: self.theirs.caption(normal, options),
        }
        self._say(what)
        # Warm-up, and for once what is said counts.
        said = {name: side() for name, side in sides.items()}
        verdict = judge(trace, self.ours.follow(pixels, options, trace), said["ours"])
        times: dict[str, list[float]] = {name: [] for name in sides}
        peaks = dict.fromkeys(sides, 0)
        for number in range(plan.rounds):
            self._say(what)
            # Whoever comes second finds a warmer processor, so they take turns at it.
            for name in sorted(sides, reverse=number % 2 == 1):
                self._reset_peak()
                # Each side with memory as it would have it in a process of its own, and with a run
                # that does not count, because the other side has just had everything.
                self._have_memory_of(name)
                sides[name]()
                times[name].append(timed(self._device, sides[name])[0])
                peaks[name] = max(peaks[name], self._peak(name))
        self._have_memory_of("ours")
        seconds, reference_seconds = median(times["ours"]), median(times["theirs"])
        return {
            "batch": batch,
            "beams": beams,
            "dtype": dtype_name(self._dtype),
            "seconds": seconds,
            "reference_seconds": reference_seconds,
            "ratio": reference_seconds / seconds,
            "images_per_second": batch / seconds,
            "teacher_forced_top1_agreement": verdict.top1_agreement,
            "unexplained_flips": verdict.unexplained_flips,
            "flips": verdict.flips,
            "reference_flips": sum(
                a != b for a, b in zip(said["theirs"], trace.captions, strict=True)
            ),
            "distinct_captions": len(set(said["ours"])),
            "greatest_logit_difference": verdict.greatest_difference,
            **self._default(batch, options, seconds),
            "peak_memory_bytes": peaks["ours"] if self._on_cuda else None,
            "reference_peak_memory_bytes": peaks["theirs"] if self._on_cuda else None,
            "all_seconds": times["ours"],
            "all_reference_seconds": times["theirs"],
        }

    def _default(
        self, batch: int, options: GenerationOptions, seconds: float
    ) -> dict[str, float | None]:
        """Time transformers in float32, once: it takes long, and differs by factors."""
        model = self.default
        if model is None:
            return {"default_seconds": None, "default_ratio": None}
        self._have_memory_of("default")
        model.caption(self._normal[:1], options)  # warm-up
        took, _ = timed(self._device, lambda: model.caption(self._normal[:batch], options))
        self._have_memory_of("ours")
        return {"default_seconds": took, "default_ratio": took / seconds}

    def _have_memory_of(self, name: str) -> None:
        """Only our model sets how freed memory is kept, and only on CPUs."""
        if not self._on_cuda:
            keep_freed_memory(keep=name == "ours")

    @property
    def _on_cuda(self) -> bool:
        return self._device.type == "cuda"

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self._device) if self._on_cuda else 0

    def _reset_peak(self) -> None:
        if self._on_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)

    def _peak(self, name: str) -> int:
        """Bytes of the device that one side used at most, the other models' own left out."""
        if not self._on_cuda:
            return 0
        others = sum(held for model, held in self._held.items() if model != name)
        return torch.cuda.max_memory_allocated(self._device) - others

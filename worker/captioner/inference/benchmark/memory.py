"""Whether batches leave memory behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from captioner.inference.benchmark.compare import Plan
from captioner.inference.captioner import Captioner
from captioner.inference.pixels import Picture

_STATM = Path("/proc/self/statm")


def measure_memory(
    captioner: Captioner,
    pictures: Sequence[Picture],
    plan: Plan,
    batches: int,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Caption many batches, all sizes and beams of the plan in turn, and watch the memory.

    The first tenth is warm-up: allocators and caches grow to the size of the work. What counts is
    the median of the second tenth against that of the last.

    Args:
        captioner: any backend.
        pictures: at least `plan.pictures`.
        plan: gives batch sizes, beams and tokens.
        batches: how many; ten turns of the plan's sizes and beams at least, or it says nothing.
        say: told before each batch.

    Returns:
        Bytes of this process in main memory and, on CUDA, allocated on the device.
    """
    work = [(batch, plan.options(beams)) for batch in plan.batches for beams in plan.beams]
    device = torch.device(captioner.info.device)
    on_cuda = device.type == "cuda"
    resident: list[int] = []
    allocated: list[int] = []
    for number in range(batches):
        say("captioning, to see whether memory grows")
        batch, options = work[number % len(work)]
        captioner.generate(pictures[:batch], options)
        if (number + 1) % len(work) == 0:
            # After the same batch of each turn: sizes differ in what the allocator keeps.
            resident.append(_resident_bytes())
            allocated.append(torch.cuda.memory_allocated(device) if on_cuda else 0)
    return {
        "batches": batches,
        "samples": len(resident),
        **_growth("resident", resident),
        **(_growth("device", allocated) if on_cuda else {}),
    }


def _growth(name: str, samples: list[int]) -> dict[str, int]:
    tenth = max(1, len(samples) // 10)
    early, late = median(samples[tenth : 2 * tenth]), median(samples[-tenth:])
    return {
        f"{name}_bytes_early": int(early),
        f"{name}_bytes_late": int(late),
        f"{name}_bytes_growth": int(late - early),
    }


def _resident_bytes() -> int:
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource  # not on Windows, which has no other way without a dependency

    # Elsewhere the most there has been, which grows where the present does; kilobytes but on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

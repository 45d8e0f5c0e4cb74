"""Who is blamed when a model breaks, whatever it was given and whenever it was killed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from captioner.domain import Caption, Lane
from captioner.engine.batcher import Batcher, Work
from captioner.engine.workload import Workload
from captioner.errors import CrashError, ErrorCode
from captioner.options import GenerationOptions

CAPTIONS = [Caption(text="", continuation="", score=0.0)]


@dataclass
class Model:
    """What is with it; it breaks on poison, and when it is killed."""

    poison: set[Work]
    batches: deque[list[Work]]

    def run_oldest(self, workload: Workload, *, killed: bool) -> bool:
        """False when it broke."""
        batch = self.batches[0]
        # Killed alone, a picture would rightly be blamed.
        if killed and len(batch) == 1:
            return False
        workload.begin()
        if killed or self.poison & set(batch):
            return False
        workload.settle(dict.fromkeys(range(len(batch)), CAPTIONS))
        assert workload.finish() == sum(work.pictures for work in batch)
        self.batches.popleft()
        return True


@given(
    wanted=st.lists(
        st.tuples(st.sampled_from(Lane), st.booleans(), st.integers(1, 5)), max_size=20
    ),
    max_batch=st.integers(1, 5),
    kills=st.lists(st.booleans(), max_size=20),
)
def test_only_the_culprits_are_blamed(
    wanted: list[tuple[Lane, bool, int]], max_batch: int, kills: list[bool]
) -> None:
    batcher = Batcher(max_batch, lambda: None)
    workload = Workload(batcher)
    works = [
        Work(np.zeros((min(pictures, max_batch), 8, 8, 3), np.uint8), GenerationOptions(), lane)
        for lane, _, pictures in wanted
    ]
    model = Model({w for w, (_, bad, _) in zip(works, wanted, strict=True) if bad}, deque())
    for work in works:
        batcher.put(work)
    batcher.close()
    fates = iter(kills)
    rounds = 0
    while not workload.done:
        rounds += 1
        assert rounds < 200, "it goes round in circles"
        while batch := workload.next_batch():
            model.batches.append(batch)
        assert 1 <= len(model.batches) <= 2
        if not model.run_oldest(workload, killed=next(fates, False)):
            model.batches.clear()
            workload.sort_after("broke", ErrorCode.WORKER_LOST)
    blamed = {work for work in works if isinstance(work.future.exception(0), CrashError)}
    assert blamed == model.poison
    assert all(work.future.result(0) == CAPTIONS for work in works if work not in blamed)

from __future__ import annotations

import itertools
import math
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.domain import Lane
from captioner.engine import EngineClosedError, InlineEngine
from captioner.engine.batcher import Batcher, Work
from captioner.errors import DeviceLostError, ErrorCode, JobError, ModelLoadError, SettingsError
from captioner.options import GenerationOptions
from captioner.testing import FakeCaption, FakeCaptionModel

OPTIONS = GenerationOptions()
DARK = np.zeros((8, 8, 3), np.uint8)


def grey(level: int) -> Any:
    return np.full((8, 8, 3), level, np.uint8)


def started(model: FakeCaptionModel, max_batch: int = 4) -> InlineEngine:
    engine = InlineEngine(lambda: model, max_batch)
    engine.start()
    return engine


def test_what_gathers_while_the_engine_is_busy_shares_a_batch() -> None:
    model = FakeCaptionModel(hold=True)
    engine = started(model, max_batch=4)
    first = engine.submit(grey(1), OPTIONS)
    assert model.busy.wait(10)
    rest = [engine.submit(grey(level), OPTIONS) for level in range(2, 8)]
    model.release.set()
    texts = [future.result(10)[0].text for future in (first, *rest)]
    assert texts == [f"mean colour {level} {level} {level}" for level in range(1, 8)]
    assert model.batches == [1, 4, 2]
    engine.close()
    assert model.closed


def test_a_broken_picture_fails_alone() -> None:
    model = FakeCaptionModel(hold=True)
    engine = started(model, max_batch=8)
    engine.submit(grey(1), OPTIONS)
    assert model.busy.wait(10)
    pictures = [grey(10), DARK, grey(20), grey(30)]
    futures = [engine.submit(pixels, OPTIONS) for pixels in pictures]
    model.release.set()
    with pytest.raises(JobError, match="cannot see in the dark") as raised:
        futures.pop(1).result(10)
    assert raised.value.code is ErrorCode.INTERNAL
    assert [future.result(10)[0].text.split()[-1] for future in futures] == ["10", "20", "30"]
    engine.close()


class NumberlessModel(FakeCaptionModel):
    """Has no number for bright pictures, as BLIP whose states overflow its type."""

    def generate(self, images: Any, options: Any) -> Any:
        score = {True: math.nan, False: -0.5}
        return [
            [replace(one, score=score[bool(pixels.mean() > 100)]) for one in captions]
            for pixels, captions in zip(images, super().generate(images, options), strict=True)
        ]


def test_a_caption_with_no_number_behind_it_is_the_models_fault() -> None:
    """The first plugin that saw one was blamed for it."""
    model = NumberlessModel(hold=True)
    engine = started(model, max_batch=8)
    engine.submit(grey(1), OPTIONS)
    assert model.busy.wait(10)
    futures = [engine.submit(grey(level), OPTIONS) for level in (10, 200, 20)]
    model.release.set()
    with pytest.raises(JobError, match=r"scores are no numbers.*CAPTIONER_MODEL__DTYPE") as raised:
        futures.pop(1).result(10)
    assert raised.value.code is ErrorCode.INTERNAL
    assert [future.result(10)[0].text.split()[-1] for future in futures] == ["10", "20"]
    engine.close()
    assert model.batches == [1, 3]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([], "ValueError: gave no caption of a picture"),
        ([FakeCaption(None, "", -1.0)], "whose text is NoneType, not a text"),  # type: ignore[arg-type]  # on purpose
        ([FakeCaption("a\x00", "", -1.0)], "whose text is not valid Unicode, or holds NUL"),
        ([FakeCaption("a", "a" * 100_001, -1.0)], "whose continuation has 100001 characters"),
        ([FakeCaption("a", "a", None)], "TypeError: float() argument"),  # type: ignore[arg-type]  # on purpose
    ],
)
def test_a_model_that_gives_no_captions_is_to_blame(given: list[FakeCaption], problem: str) -> None:
    """Not the plugin that is asked next; and no job succeeds without any."""

    class Model(FakeCaptionModel):
        def generate(self, images: Any, options: Any) -> list[list[FakeCaption]]:
            return [given for _ in images]

    engine = started(Model())
    with pytest.raises(JobError, match="the model failed: ") as raised:
        engine.submit(grey(1), OPTIONS).result(10)
    assert problem in raised.value.message
    engine.close()


def test_scores_may_be_of_an_array() -> None:
    class Model(FakeCaptionModel):
        def generate(self, images: Any, options: Any) -> list[list[FakeCaption]]:
            one = FakeCaption("a", "a", np.float32(-0.5), np.float64(-0.25))  # type: ignore[arg-type]  # as it comes
            return [[one] for _ in images]

    engine = started(Model())
    (caption,) = engine.submit(grey(1), OPTIONS).result(10)
    assert (type(caption.score), type(caption.beam_score)) == (float, float)
    engine.close()


def test_without_another_process_a_lost_device_fails_what_it_was_to_caption() -> None:
    class Lost(FakeCaptionModel):
        def generate_joint(self, *_: object) -> Any:
            raise DeviceLostError("the device cannot go on")

    engine = started(Lost())
    for _ in range(2):
        with pytest.raises(JobError, match="the device cannot go on") as raised:
            engine.submit(grey(1), OPTIONS).result(10)
        assert raised.value.code is ErrorCode.INTERNAL
    engine.close()


def test_options_that_cannot_work_never_reach_the_model() -> None:
    model = FakeCaptionModel()
    engine = started(model)
    future = engine.submit(grey(1), GenerationOptions(prompt="long " * 50))
    with pytest.raises(JobError) as raised:
        future.result(10)
    assert raised.value.code is ErrorCode.PROMPT_TOO_LONG
    assert model.batches == []
    engine.close()


def test_a_model_that_cannot_load_says_why() -> None:
    def load() -> FakeCaptionModel:
        raise OSError("disk on fire")

    with pytest.raises(ModelLoadError, match="disk on fire"):
        InlineEngine(load, 4).start()


def test_a_wrong_setting_says_so_itself() -> None:
    def load() -> FakeCaptionModel:
        raise SettingsError("CAPTIONER_PLUGINS__ENABLED is wrong")

    with pytest.raises(SettingsError, match=r"^CAPTIONER_PLUGINS__ENABLED is wrong$"):
        InlineEngine(load, 4).start()


@pytest.mark.parametrize("end", [SystemExit(3), KeyboardInterrupt()])
def test_a_load_that_ends_its_thread_is_told_to_who_waits(end: BaseException) -> None:
    def load() -> FakeCaptionModel:
        raise end

    ended = threading.Event()

    def poll() -> None:
        assert not ended.is_set(), "it has not been told"
        if not engine._thread.is_alive():
            ended.set()  # from now on one more look has to do

    engine = InlineEngine(load, 4)
    wanted = KeyboardInterrupt if isinstance(end, KeyboardInterrupt) else ModelLoadError
    with pytest.raises(wanted) as raised:
        engine.start(poll)
    if wanted is ModelLoadError:
        assert str(raised.value) == "the model cannot be loaded: SystemExit: 3"
    engine.close()


def test_a_model_that_exits_fails_its_batch_and_no_other() -> None:
    class Exits(FakeCaptionModel):
        def generate(self, images: Any, options: Any) -> Any:
            if images[0][0, 0, 0] == 66:
                raise SystemExit(3)
            return super().generate(images, options)

    engine = started(Exits())
    with pytest.raises(JobError, match="the model failed: SystemExit: 3") as raised:
        engine.submit(grey(66), OPTIONS).result(10)
    assert raised.value.code is ErrorCode.INTERNAL
    assert engine.submit(grey(1), OPTIONS).result(10)[0].text == "mean colour 1 1 1"
    assert not engine.failed
    engine.close()


def test_a_thread_that_ends_tells_who_waits_and_who_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = FakeCaptionModel(hold=True)
    engine = started(model, max_batch=1)

    def broken(*_: object) -> None:
        model.busy.set()
        model.release.wait(30)
        raise SystemExit("a fault of our own")

    monkeypatch.setattr(engine, "_caption", broken)
    futures = [engine.submit(grey(level), OPTIONS) for level in (1, 2, 3)]
    assert model.busy.wait(10)
    model.release.set()
    for future in futures[1:]:
        with pytest.raises(EngineClosedError, match="has failed: SystemExit: a fault of our own"):
            future.result(10)
    with pytest.raises(EngineClosedError, match="has failed: SystemExit: a fault of our own"):
        engine.submit(grey(4), OPTIONS)
    assert engine.failed
    engine.close()
    assert model.closed
    assert "the engine's own thread failed" in caplog.text


def test_a_stop_request_ends_the_start_before_the_load_does() -> None:
    loading, release = threading.Event(), threading.Event()

    def load() -> FakeCaptionModel:
        loading.set()
        release.wait(30)
        return FakeCaptionModel()

    def poll() -> None:
        if loading.is_set():
            raise SystemExit(0)

    engine = InlineEngine(load, 4)
    with pytest.raises(SystemExit):
        engine.start(poll)
    engine.close()  # returns although the load has not
    release.set()


def test_close_finishes_what_waits_and_takes_no_more() -> None:
    model = FakeCaptionModel(hold=True)
    engine = started(model, max_batch=2)
    futures = [engine.submit(grey(level), OPTIONS) for level in range(1, 6)]
    closer = threading.Thread(target=engine.close)
    closer.start()
    model.release.set()
    closer.join(10)
    assert all(future.done() for future in futures)
    with pytest.raises(EngineClosedError):
        engine.submit(grey(1), OPTIONS)
    engine.close()


def test_what_was_done_is_counted() -> None:
    model = FakeCaptionModel(hold=True)
    engine = started(model, max_batch=4)
    futures = [engine.submit(grey(1), OPTIONS)]
    assert model.busy.wait(10)
    futures += [engine.submit(pixels, OPTIONS) for pixels in (grey(2), DARK)]
    model.release.set()
    engine.close()
    assert [future.exception() is None for future in futures] == [True, True, False]
    assert (engine.stats.batches, engine.stats.pictures, engine.stats.restarts) == (2, 3, 0)
    assert engine.stats.busy_seconds > 0
    assert not engine.failed


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((8, 9, 3), np.uint8),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 3)),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((5, 8, 8, 3), np.uint8),
        np.zeros((1, 1, 8, 8, 3), np.uint8),
    ],
)
def test_pixels_of_another_shape_are_refused(pixels: Any) -> None:
    engine = started(FakeCaptionModel())
    with pytest.raises(ValueError, match=r"must be uint8 \[8, 8, 3\], or 1 to 4 of these, not "):
        engine.submit(pixels, OPTIONS)
    engine.close()


# Several pictures together.


def greys(*levels: int) -> Any:
    return np.stack([grey(level) for level in levels])


def test_pictures_together_share_a_batch_with_single_ones_and_count_as_so_many() -> None:
    model = FakeCaptionModel(hold=True)
    engine = started(model, max_batch=6)
    futures = [engine.submit(grey(1), OPTIONS)]
    assert model.busy.wait(10)
    futures += [
        engine.submit(pixels, OPTIONS) for pixels in (grey(2), greys(10, 20, 30), greys(4), grey(5))
    ]
    model.release.set()
    assert [future.result(10)[0].text for future in futures] == [
        "mean colour 1 1 1",
        "mean colour 2 2 2",
        "3 pictures of mean colour 20 20 20",
        "mean colour 4 4 4",
        "mean colour 5 5 5",
    ]
    engine.close()
    assert model.batches == [1, 6]
    assert (engine.stats.batches, engine.stats.pictures) == (2, 7)


def test_a_broken_picture_fails_with_those_it_was_to_be_captioned_with_and_no_other() -> None:
    model = FakeCaptionModel(hold=True)
    engine = started(model, max_batch=8)
    engine.submit(grey(1), OPTIONS)
    assert model.busy.wait(10)
    futures = [
        engine.submit(pixels, OPTIONS)
        for pixels in (greys(10, 20), np.stack([grey(1), DARK]), grey(3))
    ]
    model.release.set()
    with pytest.raises(JobError, match="cannot see in the dark"):
        futures[1].result(10)
    assert futures[0].result(10)[0].text == "2 pictures of mean colour 15 15 15"
    assert futures[2].result(10)[0].text == "mean colour 3 3 3"
    engine.close()


class OneByOne:
    """A model as plugins have it, that knows single pictures only."""

    def __init__(self, model: FakeCaptionModel) -> None:
        self.info, self.check = model.info, model.check
        self.generate, self.close = model.generate, model.close


def test_a_model_that_knows_single_pictures_only_refuses_others_and_captions_the_rest() -> None:
    model = FakeCaptionModel(hold=True)
    engine = InlineEngine(lambda: OneByOne(model), 4)
    engine.start()
    engine.submit(grey(1), OPTIONS)
    assert model.busy.wait(10)
    several, single = engine.submit(greys(1, 2), OPTIONS), engine.submit(grey(3), OPTIONS)
    model.release.set()
    with pytest.raises(JobError, match="the model fake cannot caption several pictures") as raised:
        several.result(10)
    assert raised.value.code is ErrorCode.INVALID_REQUEST
    assert single.result(10)[0].text == "mean colour 3 3 3"
    assert engine.submit(greys(4), OPTIONS).result(10)[0].text == "mean colour 4 4 4"
    engine.close()


def batcher_of(max_batch: int, linger_seconds: float = 0.0) -> tuple[Batcher, list[None]]:
    """A batcher, and a list that grows when its reader should look."""
    notes: list[None] = []
    return Batcher(max_batch, lambda: notes.append(None), linger_seconds), notes


@given(st.lists(st.sampled_from(Lane)), st.integers(1, 5))
def test_batches_lose_nothing_and_put_interactive_work_first(
    lanes: list[Lane], max_batch: int
) -> None:
    batcher, _ = batcher_of(max_batch)
    works = [Work(DARK, OPTIONS, lane) for lane in lanes]
    for work in works:
        batcher.put(work)
    batcher.close()
    taken: list[Work] = []
    while batch := batcher.take(idle=True):
        assert len(batch) <= max_batch
        taken.extend(batch)
    assert taken == sorted(works, key=lambda work: work.lane is not Lane.INTERACTIVE)
    assert batcher.drained


def work_of(pictures: int, lane: Lane = Lane.BULK) -> Work:
    return Work(np.zeros((pictures, 8, 8, 3), np.uint8), OPTIONS, lane)


@given(
    st.lists(st.tuples(st.sampled_from(Lane), st.integers(1, 5)), max_size=30),
    st.integers(5, 9),
    st.integers(1, 30),
)
def test_pictures_together_are_neither_parted_nor_lost_and_single_ones_keep_their_order(
    wanted: list[tuple[Lane, int]], max_batch: int, at_once: int
) -> None:
    batcher, _ = batcher_of(max_batch)
    works = [work_of(pictures, lane) for lane, pictures in wanted]
    waiting: list[Work] = []
    taken: list[Work] = []
    coming = iter(works)
    while True:
        for work in itertools.islice(coming, at_once):
            batcher.put(work)
            waiting.append(work)
        if not waiting:
            break
        batch = batcher.take(idle=True)
        assert 1 <= sum(work.pictures for work in batch) <= max_batch
        taken += batch
        waiting = [work for work in waiting if work not in batch]
    assert sorted(map(id, taken)) == sorted(map(id, works))
    for hurry in (True, False):
        singles = [
            work
            for work in works
            if work.pictures == 1 and (work.lane is Lane.INTERACTIVE) is hurry
        ]
        assert [work for work in taken if work in singles] == singles
    batcher.close()
    assert batcher.drained


def test_a_few_hurried_pictures_in_every_batch_do_not_keep_others_waiting_for_ever() -> None:
    batcher, _ = batcher_of(4)
    together = work_of(4, Lane.VIDEO)
    batcher.put(together)
    batches = []
    for _ in range(3):
        batcher.put(Work(DARK, OPTIONS, Lane.INTERACTIVE))
        batches.append(batcher.take(idle=True))
    assert [together in batch for batch in batches] == [False, True, False]


def test_the_reader_is_told_when_pictures_together_fill_a_batch() -> None:
    batcher, notes = batcher_of(4)
    told = []
    for pictures in (3, 3, 3):
        batcher.put(work_of(pictures))
        told.append(len(notes))
    assert told == [1, 2, 2]


def test_canceled_work_is_left_out() -> None:
    batcher, _ = batcher_of(4)
    canceled, wanted = Work(DARK, OPTIONS, Lane.BULK), Work(DARK, OPTIONS, Lane.BULK)
    batcher.put(canceled)
    batcher.put(wanted)
    assert canceled.future.cancel()
    assert batcher.take(idle=True) == [wanted]


def test_a_busy_engine_gets_full_batches_only() -> None:
    batcher, _ = batcher_of(2)
    works = [Work(DARK, OPTIONS, Lane.BULK) for _ in range(3)]
    for work in works:
        batcher.put(work)
    assert batcher.take(idle=False) == works[:2]
    assert batcher.take(idle=False) == []
    assert batcher.take(idle=True) == works[2:]


def test_the_reader_is_told_of_the_first_picture_of_a_full_batch_and_of_the_end() -> None:
    batcher, notes = batcher_of(3)
    told = []
    for _ in range(4):
        batcher.put(Work(DARK, OPTIONS, Lane.BULK))
        told.append(len(notes))
    assert told == [1, 1, 2, 2]
    batcher.close()
    batcher.close()
    assert len(notes) == 3


def test_a_picture_lingers_for_company_until_the_batch_is_full_or_closed() -> None:
    batcher, _ = batcher_of(2, linger_seconds=3600)
    assert batcher.due_seconds() is None
    works = [Work(DARK, OPTIONS, Lane.BULK) for _ in range(3)]
    batcher.put(works[0])
    assert batcher.take(idle=True) == []
    assert 3590 < (batcher.due_seconds() or 0) <= 3600
    batcher.put(works[1])
    assert batcher.take(idle=True) == works[:2]
    batcher.put(works[2])
    batcher.close()
    assert batcher.due_seconds() == 0
    assert batcher.take(idle=True) == works[2:]


def test_a_picture_that_has_lingered_is_due() -> None:
    batcher, _ = batcher_of(2, linger_seconds=0.01)
    work = Work(DARK, OPTIONS, Lane.BULK, arrived=time.monotonic() - 0.02)
    batcher.put(work)
    assert batcher.due_seconds() == 0
    assert batcher.take(idle=True) == [work]


def test_what_is_put_back_comes_first_and_cannot_be_canceled() -> None:
    batcher, _ = batcher_of(2)
    works = [Work(DARK, OPTIONS, Lane.BULK) for _ in range(4)]
    for work in works:
        batcher.put(work)
    batch = batcher.take(idle=True)
    assert not batch[0].future.cancel()
    batcher.put_back(batch)
    assert batcher.take(idle=True) == works[:2]

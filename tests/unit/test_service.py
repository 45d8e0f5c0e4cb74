"""One job from claim to record, with a real store and the fake model."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from PIL import Image

from captioner import (
    Caption,
    CaptionRequest,
    Event,
    GenerationOptions,
    Source,
    attempts,
    hookimpl,
    providers,
    service,
)
from captioner.chains import Threads
from captioner.domain import JobState, Outcome, Requeue
from captioner.engine import InlineEngine
from captioner.errors import CrashError, ErrorCode, HostBusyError, UnfitError
from captioner.media import StillImages
from captioner.plugins import Plugins
from captioner.room import Room
from captioner.sampling import InlineSampler
from captioner.service import CaptionService
from captioner.settings import MediaSettings, Settings
from captioner.stats import WorkerStats
from captioner.store import Store, create_store_engine, upgrade
from captioner.testing import FakeCaption, FakeCaptionModel
from captioner.watch import CHECK_SECONDS
from processes import wait_until


class Observer:
    def __init__(self) -> None:
        self.events: list[Event] = []

    @hookimpl
    def observe(self, event: Event) -> None:
        self.events.append(event)

    @hookimpl
    def worker_stats(self, stats: WorkerStats) -> None:
        """Comes after all events before it."""


class Bench:
    """A service with everything in reach."""

    def __init__(self, url: str, folder: Path) -> None:
        upgrade(url)
        self.folder = folder
        self.store = Store(create_store_engine(url))
        self.model = FakeCaptionModel()
        self.observer = Observer()
        self.plugins = Plugins()
        limits = MediaSettings(allowed_roots=(folder,))
        self.plugins.register(StillImages(limits), "still_image")
        self.plugins.register(self.observer, "observer")
        engine = InlineEngine(lambda: self.model, max_batch=8)
        engine.start()
        settings = Settings(data_dir=folder, media=limits)
        owner = self.store.register_worker("test")
        sampler = InlineSampler(self.plugins, limits)
        self.service = CaptionService(self.store, engine, sampler, self.plugins, settings, owner)

    @property
    def heard(self) -> list[Event]:
        """What the observer has heard, once it has heard all there is."""
        self.service.reports.observers.tell_and_wait("worker_stats", 30, stats=WorkerStats())
        return self.observer.events

    def run_when_due(self, job_id: UUID) -> list[JobState]:
        """Run a job as if its pause were over."""
        (job,) = self.store.claim([job_id], "somebody", now=datetime.now(UTC) + timedelta(days=1))
        self.store.requeue([Requeue(job_id=job.id, attempt=job.attempt)])
        return self.service.run([job_id])

    def picture(self, name: str, colour: tuple[int, int, int]) -> str:
        path = self.folder / name
        Image.new("RGB", (20, 10), colour).save(path)
        return str(path)

    def submit(
        self, *sources: str, options: GenerationOptions | None = None
    ) -> list[CaptionRequest]:
        requests = [
            CaptionRequest(source=Source(source), options=options or GenerationOptions())
            for source in sources
        ]
        self.store.add(requests)
        return requests


@pytest.fixture
def bench(database_url: str, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(database_url, tmp_path)
    yield bench
    bench.service.close()


def test_a_job_is_captioned_recorded_and_told_of(bench: Bench) -> None:
    (request,) = bench.submit(bench.picture("a.png", (10, 20, 30)))
    assert bench.service.run([request.id]) == [JobState.SUCCEEDED]
    job = bench.store.get(request.id)
    assert (job.state, job.attempt, job.caption) == ("succeeded", 1, "mean colour 10 20 30")
    assert job.model == bench.model.info
    assert set(job.timings) == {"fetch", "decode", "engine", "total"}
    (event,) = bench.heard
    assert (event.job_id, event.type) == (request.id, "caption.succeeded")


def test_a_second_message_for_the_same_job_does_nothing(bench: Bench) -> None:
    (request,) = bench.submit(bench.picture("a.png", (10, 20, 30)))
    with ThreadPoolExecutor(16) as executor:
        states = list(executor.map(lambda _: bench.service.run([request.id]), range(50)))
    assert [state for run in states for state in run] == [JobState.SUCCEEDED]
    assert len(bench.heard) == 1
    assert sum(bench.model.batches) == 1


def test_each_of_a_message_gets_its_own_caption_and_one_bad_file_harms_no_other(
    bench: Bench,
) -> None:
    sources = [bench.picture(f"{level}.png", (level, 0, 0)) for level in range(1, 32)]
    broken = bench.folder / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff not really")
    requests = bench.submit(*sources[:16], str(broken), *sources[16:])
    states = bench.service.run([request.id for request in requests])
    assert states.count(JobState.SUCCEEDED) == 31
    for request in requests:
        job = bench.store.get(request.id)
        if request.source.path == str(broken):
            assert job.failure is not None
            assert job.failure.code == "decode_failed"
            assert not job.failure.retryable
        else:
            assert job.caption == f"mean colour {Path(request.source.path).stem} 0 0"


def test_a_canceled_job_keeps_no_result(bench: Bench) -> None:
    bench.model.release.clear()
    (request,) = bench.submit(bench.picture("a.png", (10, 20, 30)))
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(bench.service.run, [request.id])
        assert bench.model.busy.wait(10)
        bench.store.cancel([request.id])
        bench.model.release.set()
        assert running.result(10) == [JobState.CANCELED]
    job = bench.store.get(request.id)
    assert (job.state, job.captions) == (JobState.CANCELED, ())
    assert bench.heard == []


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("/nowhere/a.png", "source_not_allowed"),
        ("{folder}/missing.png", "fetch_failed"),
        ("ftp://host/a.png", "source_not_allowed"),
        ("data:image/png;base64,????", "invalid_request"),
    ],
)
def test_what_cannot_be_fetched_fails_with_its_code(bench: Bench, source: str, code: str) -> None:
    bench.picture("another.png", (1, 2, 3))
    (request,) = bench.submit(source.format(folder=bench.folder))
    assert bench.service.run([request.id]) == [JobState.FAILED]
    failure = bench.store.get(request.id).failure
    assert failure is not None
    assert failure.code == code
    assert "\n" not in failure.message
    assert bench.heard[0].error_code == code


def test_a_broken_provider_fails_the_job_and_is_named(bench: Bench) -> None:
    class Broken:
        @hookimpl
        def sample_frames(self) -> None:
            raise KeyError("oops")

    bench.plugins.register(Broken(), "broken")
    (request,) = bench.submit(bench.picture("a.png", (1, 2, 3)))
    bench.service.run([request.id])
    failure = bench.store.get(request.id).failure
    assert failure is not None
    assert failure.code == "plugin_failed"
    assert "'broken'" in failure.message


def test_a_model_failure_is_tried_again_with_pauses_and_then_final(bench: Bench) -> None:
    (request,) = bench.submit(bench.picture("dark.png", (0, 0, 0)))
    for retries in range(1, 6):
        before = datetime.now(UTC)
        assert bench.run_when_due(request.id) == [JobState.QUEUED]
        job = bench.store.get(request.id)
        assert (job.state, job.retries, job.crashes) == ("queued", retries, 0)
        assert job.not_before is not None
        pause_seconds = (job.not_before - before).total_seconds()
        longest = 5.0 * 2 ** (retries - 1)
        assert longest / 2 <= pause_seconds <= longest + 5
        assert bench.service.run([request.id]) == []  # not due yet
    assert bench.run_when_due(request.id) == [JobState.FAILED]
    job = bench.store.get(request.id)
    assert job.failure is not None
    assert (job.failure.code, job.retries) == ("internal", 5)
    assert [event.type for event in bench.heard] == ["caption.failed"]


def test_a_job_that_crashes_its_process_alone_three_times_has_failed(bench: Bench) -> None:
    class Crashes:
        @hookimpl
        def sample_frames(self) -> None:
            raise CrashError(ErrorCode.WORKER_LOST, "the decoder was killed")

    bench.plugins.register(Crashes(), "crashes")
    (request,) = bench.submit(bench.picture("a.png", (1, 2, 3)))
    for crashes, longest in ((1, 5.0), (2, 10.0)):
        before = datetime.now(UTC)
        assert bench.run_when_due(request.id) == [JobState.QUEUED]
        job = bench.store.get(request.id)
        assert job.crashes == crashes
        assert job.not_before is not None
        assert longest / 2 <= (job.not_before - before).total_seconds() <= longest + 5
    assert bench.run_when_due(request.id) == [JobState.FAILED]
    failure = bench.store.get(request.id).failure
    assert failure is not None
    assert failure.code == "worker_lost"


def test_a_job_past_its_deadline_expires(bench: Bench) -> None:
    bench.model.release.clear()
    source = Source(bench.picture("a.png", (1, 2, 3)))
    request = CaptionRequest(source=source, deadline_at=datetime.now(UTC) + timedelta(seconds=2))
    bench.store.add([request])
    assert bench.service.run([request.id]) == [JobState.EXPIRED]
    bench.model.release.set()
    job = bench.store.get(request.id)
    assert job.failure is not None
    assert (job.state, job.failure.code) == ("expired", "deadline_exceeded")
    assert [event.type for event in bench.heard] == ["caption.expired"]


def test_the_host_of_a_job_may_be_busy_without_counting_against_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object, **__: object) -> None:
        raise HostBusyError("cms.example has enough to do", 60.0)

    (request,) = bench.submit(bench.picture("a.png", (1, 2, 3)))
    with monkeypatch.context() as patch:
        patch.setattr(bench.service._pipeline, "begin", busy)
        patch.setattr(service, "REST_SECONDS", 60.0)  # which is for workers that are not fit
        began = time.monotonic()
        assert bench.service.run([request.id]) == [JobState.QUEUED]
        assert time.monotonic() - began < 30
    job = bench.store.get(request.id)
    assert (job.retries, job.crashes, job.failure) == (0, 0, None)
    assert job.not_before is not None
    assert job.not_before > datetime.now(UTC) + timedelta(seconds=50)
    assert bench.run_when_due(request.id) == [JobState.SUCCEEDED]


def unfit(*_: object, **__: object) -> None:
    raise UnfitError("the disk is full")


def test_a_worker_that_is_not_fit_gives_jobs_back_and_rests(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests = bench.submit(*(bench.picture(f"{n}.png", (n, 2, 3)) for n in range(3)))
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(bench.service._pipeline, "begin", unfit)
        patch.setattr(service, "REST_SECONDS", 0.5)
        began = time.monotonic()
        for request in requests:
            assert bench.service.run([request.id]) == [JobState.QUEUED]
        assert time.monotonic() - began >= 3 * 0.5
    assert caplog.messages == ["jobs go back to the queue: the disk is full"]
    for request in requests:
        job = bench.store.get(request.id)
        assert (job.retries, job.crashes, job.failure) == (0, 0, None)
        assert bench.run_when_due(request.id) == [JobState.SUCCEEDED]


def test_others_have_the_job_while_a_worker_rests_which_ends_with_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.service._pipeline, "begin", unfit)
    monkeypatch.setattr(service, "REST_SECONDS", 60.0)
    (request,) = bench.submit(bench.picture("a.png", (1, 2, 3)))
    with ThreadPoolExecutor(1) as executor:
        resting = executor.submit(bench.service.run, [request.id])
        wait_until(lambda: bench.store.get(request.id).not_before is not None)
        job = bench.store.get(request.id)
        assert job.state is JobState.QUEUED
        assert job.not_before is not None
        assert job.not_before < datetime.now(UTC) + timedelta(seconds=2)
        assert not resting.done()
        bench.service.stop_taking()
        assert resting.result(10) == [JobState.QUEUED]


def test_canceling_stops_what_runs(bench: Bench) -> None:
    bench.model.release.clear()
    blocker, victim = bench.submit(
        bench.picture("a.png", (10, 20, 30)), bench.picture("b.png", (20, 20, 30))
    )
    with ThreadPoolExecutor(2) as executor:
        first = executor.submit(bench.service.run, [blocker.id])
        assert bench.model.busy.wait(10)
        second = executor.submit(bench.service.run, [victim.id])
        wait_until(lambda: bench.store.get(victim.id).state is JobState.PROCESSING)
        bench.service.cancel([victim.id])
        assert second.result(10) == [JobState.CANCELED]  # while the engine is still busy
        bench.model.release.set()
        assert first.result(10) == [JobState.SUCCEEDED]
    assert sum(bench.model.batches) == 1


def test_a_heartbeat_notices_jobs_canceled_by_others(bench: Bench) -> None:
    bench.model.release.clear()
    (request,) = bench.submit(bench.picture("a.png", (10, 20, 30)))
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(bench.service.run, [request.id])
        assert bench.model.busy.wait(10)
        bench.store.cancel([request.id])
        bench.service.look_after()
        assert running.result(10) == [JobState.CANCELED]
    bench.model.release.set()


def test_a_claim_whose_answer_was_lost_is_put_back(bench: Bench) -> None:
    (request,) = bench.submit(bench.picture("a.png", (10, 20, 30)))
    bench.store.claim([request.id], bench.service.owner)  # nobody has it in hand
    bench.service.look_after()
    assert bench.store.get(request.id).state is JobState.PROCESSING  # it may be on its way
    bench.service.look_after()
    assert bench.store.get(request.id).state is JobState.QUEUED
    assert bench.service.run([request.id]) == [JobState.SUCCEEDED]


def test_what_is_in_hand_is_never_put_back(bench: Bench) -> None:
    bench.model.release.clear()
    (request,) = bench.submit(bench.picture("a.png", (10, 20, 30)))
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(bench.service.run, [request.id])
        assert bench.model.busy.wait(10)
        for _ in range(5):
            bench.service.look_after()
        bench.model.release.set()
        assert running.result(10) == [JobState.SUCCEEDED]
    assert bench.store.get(request.id).attempt == 1


def test_what_has_not_begun_is_handed_back_untried_when_the_worker_stops(bench: Bench) -> None:
    requests = bench.submit(*[bench.picture(f"{n}.png", (n, 0, 0)) for n in (1, 2, 3)])
    bench.service.stop_taking()
    assert bench.service.run([one.id for one in requests]) == [JobState.QUEUED] * 3
    for job in bench.store.get_many([one.id for one in requests]):
        assert (job.state, job.retries, job.failure) == ("queued", 0, None)
    assert bench.model.batches == []


def test_a_slow_one_of_a_message_holds_up_the_record_of_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = threading.Event()
    begin = bench.service._pipeline.begin

    def slow(request: CaptionRequest, **rest: object) -> object:
        if request.id == first.id:
            assert fetched.wait(30)
        return begin(request, **rest)  # type: ignore[arg-type]  # passed on

    pictures = [bench.picture(f"{n}.png", (10, 20, 30 + n)) for n in range(6)]
    first, *others = bench.submit(*pictures)
    monkeypatch.setattr(bench.service._pipeline, "begin", slow)
    with ThreadPoolExecutor(1) as executor:
        run = executor.submit(bench.service.run, [first.id, *(one.id for one in others)])
        wait_until(lambda: bench.store.count_by_state()[JobState.SUCCEEDED] == len(others))
        assert bench.store.get(first.id).state is JobState.PROCESSING
        fetched.set()
        assert run.result(30) == [JobState.SUCCEEDED] * 6
    texts = [bench.store.get(one.id).caption for one in (first, *others)]
    assert texts == [f"mean colour 10 20 {30 + n}" for n in range(6)]


def test_what_follows_closely_is_recorded_together(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "GATHER_SECONDS", 30.0)
    record, generate, written = bench.store.record, bench.model.generate, []

    def count(outcomes: Sequence[Outcome], **when: Any) -> set[UUID]:
        written.append(len(outcomes))
        return record(outcomes, **when)

    def slowly(*batch: Any) -> list[list[FakeCaption]]:
        threading.Event().wait(0.05)
        return generate(*batch)

    monkeypatch.setattr(bench.store, "record", count)
    monkeypatch.setattr(bench.model, "generate", slowly)
    requests = bench.submit(*[bench.picture(f"{n}.png", (10, 20, 30 + n)) for n in range(12)])
    assert bench.service.run([one.id for one in requests]) == [JobState.SUCCEEDED] * 12
    assert len(bench.model.batches) > 1
    assert list(filter(None, written)) == [12]


def test_one_of_a_message_can_be_canceled_while_the_engine_is_busy(bench: Bench) -> None:
    bench.model.release.clear()
    names = [bench.picture(f"{n}.png", (10, 20, 30 + n)) for n in range(3)]
    requests = bench.submit(*names)
    with ThreadPoolExecutor(1) as executor:
        run = executor.submit(bench.service.run, [one.id for one in requests])
        assert bench.model.busy.wait(10)
        bench.service.cancel([requests[1].id])
        wait_until(lambda: len(bench.service._in_hand.claims()) == 2)  # put away at once
        bench.model.release.set()
        assert run.result(30) == [JobState.SUCCEEDED, JobState.CANCELED, JobState.SUCCEEDED]


def test_messages_of_many_wait_for_room_and_those_of_one_do_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.service._room = Room(2)
    bench.model.release.clear()
    submit, pictures = bench.service._engine.submit, []

    def count(*picture: Any) -> Future[Any]:
        pictures.append(picture)
        return submit(*picture)

    monkeypatch.setattr(bench.service._engine, "submit", count)
    many = bench.submit(*[bench.picture(f"{n}.png", (10, 20, 30 + n)) for n in range(4)])
    (alone,) = bench.submit(bench.picture("alone.png", (1, 2, 3)))
    with ThreadPoolExecutor(3) as executor:
        first = executor.submit(bench.service.run, [one.id for one in many[:2]])
        wait_until(lambda: bench.store.count_by_state()[JobState.PROCESSING] == 2)
        second = executor.submit(bench.service.run, [one.id for one in many[2:]])
        third = executor.submit(bench.service.run, [alone.id])
        wait_until(lambda: len(pictures) == 3)
        assert len(pictures) == 3  # the second message is claimed, and waits
        bench.service.stop_taking()
        assert second.result(30) == [JobState.QUEUED] * 2  # handed back at once
        bench.model.release.set()
        assert first.result(30) == [JobState.SUCCEEDED] * 2
        assert third.result(30) == [JobState.SUCCEEDED]


def test_a_worker_that_has_enough_says_so(bench: Bench) -> None:
    bench.model.release.clear()
    bench.service._concurrency = 1
    assert not bench.service.has_plenty()
    requests = bench.submit(*[bench.picture(f"{n}.png", (10, 20, 30 + n)) for n in range(10)])
    with ThreadPoolExecutor(1) as executor:
        run = executor.submit(bench.service.run, [one.id for one in requests])
        wait_until(bench.service.has_plenty)
        bench.model.release.set()
        assert run.result(30) == [JobState.SUCCEEDED] * 10
    assert not bench.service.has_plenty()


class Processor:
    """Takes its time with a caption, or raises what it likes."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.busy = threading.Event()

    @hookimpl
    def process_caption(self, caption: Caption) -> None:
        if caption.text == "mean colour 1 1 1":
            raise asyncio.CancelledError
        if caption.text == "mean colour 2 2 2":
            self.busy.set()
            self.go_on.wait()


def test_a_slow_processor_holds_up_its_own_job_alone(bench: Bench) -> None:
    processor = Processor()
    bench.plugins.register(processor, "slow")
    slow, *others = bench.submit(*[bench.picture(f"{n}.png", (n, n, n)) for n in (2, 3, 4, 5)])
    with ThreadPoolExecutor(1) as executor:
        run = executor.submit(bench.service.run, [slow.id, *(one.id for one in others)])
        wait_until(lambda: bench.store.count_by_state()[JobState.SUCCEEDED] == len(others))
        assert processor.busy.is_set()
        processor.go_on.set()
        assert run.result(30) == [JobState.SUCCEEDED] * 4


@pytest.mark.parametrize("names", [(2,), (2, 3)])
def test_a_hanging_processor_fails_its_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, names: tuple[int, ...]
) -> None:
    monkeypatch.setattr(attempts, "FINISH_SECONDS", 0.2)
    processor = Processor()
    bench.plugins.register(processor, "hanging")
    requests = bench.submit(*[bench.picture(f"{n}.png", (n, n, n)) for n in names])
    states = bench.service.run([one.id for one in requests])
    assert states == [JobState.FAILED, JobState.SUCCEEDED][: len(names)]
    failure = bench.store.get(requests[0].id).failure
    assert failure is not None
    assert failure.code == "plugin_failed"
    assert failure.message == (
        "plugin 'hanging' failed in process_caption: did not return within 0.2 s"
    )
    assert bench.plugins.errors.totals() == {("hanging", "process_caption"): 1}
    processor.go_on.set()


def test_processors_that_hang_leave_room_for_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many: as where the server that translates is away. The worker ends in time."""
    monkeypatch.setattr(attempts, "FINISH_SECONDS", 0.2)
    monkeypatch.setattr(service, "MOST_HANGING", 4)
    bench.service._finishers = Threads(3, "captions")
    processor = Processor()
    bench.plugins.register(processor, "hanging")
    for number in range(4):
        assert not bench.service.failed
        (hanging,) = bench.submit(bench.picture(f"{number}.png", (2, 2, 2)))
        assert bench.service.run([hanging.id]) == [JobState.FAILED]
    (good,) = bench.submit(bench.picture("good.png", (3, 3, 3)))
    assert bench.service.run([good.id]) == [JobState.SUCCEEDED]
    assert bench.service.failed
    bench.service.close()  # waits for none of them
    processor.go_on.set()
    wait_until(lambda: not bench.service.failed)


def test_who_waits_for_a_processors_thread_is_not_taken_for_hanging(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "FINISH_SECONDS", 0.6)
    bench.service._finishers = Threads(1, "captions")
    processor = Processor()
    bench.plugins.register(processor, "hanging")
    *slow, good = bench.submit(
        *[bench.picture(f"{n}.png", (n, n, n)) for n in (2, 2)], bench.picture("3.png", (3, 3, 3))
    )
    with ThreadPoolExecutor(3) as executor:
        hanging = [executor.submit(bench.service.run, [one.id]) for one in slow]
        assert processor.busy.wait(30)
        last = executor.submit(bench.service.run, [good.id])
        assert [one.result(30) for one in hanging] == [[JobState.FAILED]] * 2
        assert last.result(30) == [JobState.SUCCEEDED]
    processor.go_on.set()


def test_a_processor_was_not_at_work_while_the_worker_was_paused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = Processor()
    bench.plugins.register(processor, "slow")
    (slow,) = bench.submit(bench.picture("2.png", (2, 2, 2)))
    clock, hour = time.monotonic, 3600
    with ThreadPoolExecutor(1) as executor:
        run = executor.submit(bench.service.run, [slow.id])
        assert processor.busy.wait(30)
        monkeypatch.setattr(time, "monotonic", lambda: clock() + hour)
        time.sleep(3 * CHECK_SECONDS)
        processor.go_on.set()
        assert run.result(30) == [JobState.SUCCEEDED]


def test_what_a_plugin_raises_is_caught_whatever_it_is(bench: Bench) -> None:
    bench.plugins.register(Processor(), "raising")
    requests = bench.submit(*[bench.picture(f"{n}.png", (n, n, n)) for n in (1, 3)])
    assert bench.service.run([one.id for one in requests]) == [
        JobState.FAILED,
        JobState.SUCCEEDED,
    ]
    (alone,) = bench.submit(bench.picture("alone.png", (1, 1, 1)))
    assert bench.service.run([alone.id]) == [JobState.FAILED]
    failure = bench.store.get(alone.id).failure
    assert failure is not None
    assert failure.code == "plugin_failed"


class Opener:
    """Brings nothing for as long as it likes."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.asked: list[str] = []

    @hookimpl
    def open_source(self, source: Source) -> None:
        self.asked.append(source.display)
        if source.scheme == "slow":
            self.go_on.wait()


def test_a_plugin_that_brings_no_source_for_ever_fails_its_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many: the others go on, and the worker ends in time."""
    monkeypatch.setattr(providers, "OPEN_SECONDS", 0.2)
    asking = bench.service._pipeline._providers
    hurried = asking._limits.model_copy(update={"fetch_timeout_seconds": 0.1})
    monkeypatch.setattr(asking, "_limits", hurried)
    monkeypatch.setattr(service, "MOST_HANGING", 4)
    opener = Opener()
    bench.plugins.register(opener, "opener")
    for number in range(4):
        assert not bench.service.failed
        (hanging,) = bench.submit(f"slow://{number}")
        assert bench.service.run([hanging.id]) == [JobState.FAILED]
    failure = bench.store.get(hanging.id).failure
    assert failure is not None
    assert (failure.code, failure.message) == (
        "plugin_failed",
        "plugin 'opener' failed in open_source: did not return within 0.2 s",
    )
    assert bench.plugins.errors.totals() == {("opener", "open_source"): 4}
    (good,) = bench.submit(bench.picture("good.png", (3, 3, 3)))
    assert bench.service.run([good.id]) == [JobState.SUCCEEDED]
    assert bench.service.failed
    bench.service.close()  # waits for none of them
    opener.go_on.set()
    wait_until(lambda: not bench.service.failed)


def test_nobody_waits_for_a_source_that_is_not_wanted_any_more(bench: Bench) -> None:
    opener = Opener()
    bench.plugins.register(opener, "opener")
    late = CaptionRequest(
        source=Source("slow://late"), deadline_at=datetime.now(UTC) + timedelta(seconds=0.5)
    )
    bench.store.add([late])
    (canceled,) = bench.submit("slow://canceled")
    with ThreadPoolExecutor(2) as executor:
        runs = [executor.submit(bench.service.run, [one]) for one in (late.id, canceled.id)]
        wait_until(lambda: len(opener.asked) == 2)
        bench.service.cancel([canceled.id])
        assert runs[1].result(30) == [JobState.CANCELED]
        assert runs[0].result(30) == [JobState.EXPIRED]
    opener.go_on.set()


def test_handing_back_gives_up_what_runs(bench: Bench) -> None:
    bench.model.release.clear()
    (request,) = bench.submit(bench.picture("a.png", (10, 20, 30)))
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(bench.service.run, [request.id])
        assert bench.model.busy.wait(10)
        bench.service.hand_back()
        assert bench.store.get(request.id).state is JobState.QUEUED
        assert running.result(10) == [JobState.QUEUED]
    bench.model.release.set()
    assert bench.heard == []


def test_jobs_of_a_closed_engine_go_back(bench: Bench) -> None:
    (request,) = bench.submit(bench.picture("a.png", (10, 20, 30)))
    bench.service._engine.close()
    assert bench.service.run([request.id]) == [JobState.QUEUED]
    assert bench.store.get(request.id).retries == 0


def test_unknown_ids_are_nobodys(bench: Bench) -> None:
    request = CaptionRequest(source=Source("/x"))
    assert bench.service.run([request.id]) == []


def test_closing_twice_is_closing_once(bench: Bench) -> None:
    bench.service.close()
    bench.service.close()
    assert bench.model.closed


def test_a_message_of_which_nothing_is_left_waits_for_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [
        one.id
        for one in bench.submit(
            bench.picture("a.png", (9, 9, 9)), bench.picture("b.png", (0, 9, 9))
        )
    ]
    bench.service.run(ids)
    monkeypatch.setattr("captioner.beginnings.TURN_SECONDS", 60)

    with bench.service._beginnings._turn, ThreadPoolExecutor() as pool:  # as another message has it
        assert pool.submit(bench.service.run, ids).result(timeout=30) == []


def test_jobs_leave_nothing_to_the_cycle_collector(bench: Bench) -> None:
    """What waits for it spreads over fresh memory, and every job is slower (CPU caches)."""
    pictures = [bench.picture(f"{number}.png", (200, 9 * number, 100)) for number in range(12)]
    several = bench.submit(*pictures, str(bench.folder / "missing.png"))
    gc.collect()
    of_other_tests = alive_attempts()
    gc.disable()
    try:
        bench.service.run([one.id for one in several])
        for alone in bench.submit(*pictures):
            bench.service.run([alone.id])
        left = alive_attempts() - of_other_tests
    finally:
        gc.enable()
    # The engine and the threads may still hold what they did last.
    assert len(left) <= 4


def alive_attempts() -> set[attempts.Attempt]:
    # Not isinstance: some modules answer for their class with a warning.
    return {one for one in gc.get_objects() if type(one) is attempts.Attempt}


def test_nothing_stays_open_of_a_service_that_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(f"sqlite:///{tmp_path}/captioner.sqlite3")
    model = FakeCaptionModel()
    engine = InlineEngine(lambda: model, max_batch=8)
    opened: list[Store] = []

    def open_store(settings: Settings) -> Store:
        opened.append(Store(create_store_engine(settings.database_url)))
        return opened[-1]

    close = Store.close

    def closed(self: Store) -> None:
        opened.remove(self)
        close(self)

    def fail(*_: Any) -> None:
        raise OSError("no decoder can be started")

    monkeypatch.setattr(service, "open_store", open_store)
    monkeypatch.setattr(service, "open_engine", lambda _settings: engine)
    monkeypatch.setattr(service, "open_sampler", fail)
    monkeypatch.setattr(Store, "close", closed)
    with pytest.raises(OSError, match="no decoder"):
        service.open_service(Settings(data_dir=tmp_path))
    assert opened == []
    assert not engine._thread.is_alive()

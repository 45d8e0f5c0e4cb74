"""One job from claim to record, with a real store and the fake model."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from captioner import CaptionRequest, Event, GenerationOptions, Source, hookimpl
from captioner.domain import JobState
from captioner.engine import InlineEngine
from captioner.media import StillImages
from captioner.plugins import Plugins
from captioner.service import CaptionService
from captioner.settings import MediaSettings, Settings
from captioner.store import Store, create_store_engine, upgrade
from captioner.testing import FakeCaptionModel


class Observer:
    def __init__(self) -> None:
        self.events: list[Event] = []

    @hookimpl
    def observe(self, event: Event) -> None:
        self.events.append(event)


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
        self.service = CaptionService(self.store, engine, self.plugins, settings, owner)

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
    (event,) = bench.observer.events
    assert (event.job_id, event.type) == (request.id, "caption.succeeded")


def test_a_second_message_for_the_same_job_does_nothing(bench: Bench) -> None:
    (request,) = bench.submit(bench.picture("a.png", (10, 20, 30)))
    with ThreadPoolExecutor(16) as executor:
        states = list(executor.map(lambda _: bench.service.run([request.id]), range(50)))
    assert [state for run in states for state in run] == [JobState.SUCCEEDED]
    assert len(bench.observer.events) == 1
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
    assert bench.observer.events == []


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
    (request,) = bench.submit(source.format(folder=bench.folder))
    assert bench.service.run([request.id]) == [JobState.FAILED]
    failure = bench.store.get(request.id).failure
    assert failure is not None
    assert failure.code == code
    assert "\n" not in failure.message
    assert bench.observer.events[0].error_code == code


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


def test_a_model_failure_is_internal_and_may_be_tried_again(bench: Bench) -> None:
    (request,) = bench.submit(bench.picture("dark.png", (0, 0, 0)))
    bench.service.run([request.id])
    failure = bench.store.get(request.id).failure
    assert failure is not None
    assert (failure.code, failure.retryable) == ("internal", True)


def test_unknown_ids_are_nobodys(bench: Bench) -> None:
    request = CaptionRequest(source=Source("/x"))
    assert bench.service.run([request.id]) == []


def test_closing_twice_is_closing_once(bench: Bench) -> None:
    bench.service.close()
    bench.service.close()
    assert bench.model.closed

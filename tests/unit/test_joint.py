"""One caption of all frames together: of which, what becomes of it, and that it is the oracle's.

That such captions are *right* cannot be shown with the models here, only how they are made.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import captioner_video
from captioner import (
    Caption,
    CaptionRequest,
    ErrorCode,
    Frame,
    FrameCaptions,
    Media,
    Source,
    VideoOptions,
    hookimpl,
)
from captioner.domain import JobState, Lane
from captioner.engine import ProcessEngine
from captioner.inference import Captioner, GenerationOptions, load_captioner
from captioner.joint import JointFrames
from captioner.pipeline import Pipeline
from captioner.sampling import InlineSampler, open_plugins
from captioner.settings import EngineSettings, MediaSettings, PluginSettings
from captioner.testing import FakeCaptionModel, caption_with
from checkpoints import random_picture, save_tiny_blip
from videos import write_video

SIZE = 8
#: Pictures of one batch in `caption_with`.
MAX_BATCH = 8


def coloured(level: int) -> Any:
    return np.full((SIZE, SIZE, 3), level, np.uint8)


# Which frames.


@given(st.lists(st.booleans(), min_size=1, max_size=200), st.integers(1, 40))
def test_frames_that_differ_are_spread_evenly_and_never_too_many(
    repeated: list[bool], most: int
) -> None:
    frames = JointFrames(most)
    most = min(most, 32)
    differing: list[int] = []
    for number, again in enumerate(repeated):
        if not again or not number:
            differing.append(number)
        frames.add(Frame(coloured(number), float(number), repeated=again))
        pixels = frames.pixels
        assert pixels is not None
        assert len(pixels) <= most
        kept = pixels[:, 0, 0, 0].tolist()
        every = differing.index(kept[1]) if len(kept) > 1 else len(differing)
        assert kept == differing[::every]
        assert len(kept) >= min(len(differing), (most + 1) // 2)


# What becomes of it.


class Video:
    """Frames of its own making, in threes that look alike, and a summary with a segment each."""

    def __init__(self, count: int, media_seconds: float | None = 99.5) -> None:
        self.count = count
        self.media_seconds = media_seconds
        self.combined: list[int] = []

    @hookimpl
    def sample_frames(self) -> Iterator[Frame]:
        for number in range(self.count):
            yield Frame(
                coloured(number // 3 + 1),
                float(number),
                media_seconds=self.media_seconds,
                repeated=number % 3 > 0,
            )

    @hookimpl
    def combine_captions(self, frames: Sequence[FrameCaptions]) -> Sequence[Caption]:
        self.combined.append(len(frames))
        best = [frame.captions[0] for frame in frames]
        times = [frame.time_seconds or 0.0 for frame in frames]
        return [
            replace(best[0], start_seconds=0.0, end_seconds=99.5),
            *(
                replace(one, start_seconds=time, end_seconds=time + 1)
                for one, time in zip(best, times, strict=True)
            ),
        ]


def test_joint_is_one_caption_of_what_differs_over_the_whole_time() -> None:
    plugin, model = Video(9), FakeCaptionModel(SIZE)
    job = caption_with(plugin, model=model, options={"video": {"mode": "joint"}})
    assert job.state is JobState.SUCCEEDED
    (caption,) = job.captions
    assert caption.text == "3 pictures of mean colour 2 2 2"
    assert (caption.rank, caption.origin) == (0, "joint")
    assert (caption.start_seconds, caption.end_seconds) == (0.0, 99.5)
    assert caption.frame_seconds is None
    assert model.batches == [3]
    assert plugin.combined == []


def test_both_is_the_timeline_and_the_joint_caption_last() -> None:
    plugin, model = Video(9), FakeCaptionModel(SIZE)
    job = caption_with(plugin, model=model, options={"video": {"mode": "both"}})
    *others, last = job.captions
    alone = caption_with(Video(9), model=FakeCaptionModel(SIZE))
    assert tuple(others) == alone.captions
    assert last.text == "3 pictures of mean colour 2 2 2"
    assert (last.rank, last.origin) == (10, "joint")
    assert (last.start_seconds, last.end_seconds) == (0.0, 99.5)
    assert sum(model.batches) == 6


def test_a_video_of_unknown_length_ends_with_its_last_frame() -> None:
    job = caption_with(
        Video(9, media_seconds=None),
        model=FakeCaptionModel(SIZE),
        options={"video": {"mode": "joint"}},
    )
    assert job.captions[0].end_seconds == 8.0


def test_more_frames_than_a_batch_holds_are_thinned_evenly() -> None:
    model = FakeCaptionModel(SIZE)
    job = caption_with(Video(60), model=model, options={"video": {"mode": "joint"}})
    assert model.batches == [5]  # every fourth of 20 that differ: every second are more than 8
    assert job.caption == "5 pictures of mean colour 9 9 9"


def test_a_still_picture_is_a_picture_in_every_mode(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), (10, 20, 30)).save(tmp_path / "a.png")
    for mode in ("joint", "both"):
        job = caption_with(
            captioner_video,
            tmp_path / "a.png",
            model=FakeCaptionModel(),
            options={"video": {"mode": mode}},
        )
        (caption,) = job.captions
        assert (caption.text, caption.origin) == ("mean colour 10 20 30", "model")
        assert caption.start_seconds is None


def test_that_it_is_experimental_is_not_lost_when_plugins_change_it() -> None:
    class Shouting(Video):
        @hookimpl
        def process_caption(self, caption: Caption) -> Caption:
            return replace(caption, text=caption.text.upper(), alt_text="an alt text")

    options = {"video": {"mode": "both"}}
    job = caption_with(Shouting(3), model=FakeCaptionModel(SIZE), options=options, name="shouting")
    *others, last = job.captions
    assert {one.origin for one in others} == {"shouting"}
    assert (last.origin, last.text) == ("joint", "MEAN COLOUR 1 1 1")
    assert last.alt_text == "an alt text"


@pytest.mark.parametrize("mode", ["joint", "both"])
def test_a_model_that_knows_single_pictures_only_says_so(mode: str) -> None:
    model = FakeCaptionModel(SIZE)

    class OneByOne:
        info, check, generate, close = model.info, model.check, model.generate, model.close

    job = caption_with(Video(9), model=OneByOne(), options={"video": {"mode": mode}})
    assert job.state is JobState.FAILED
    assert job.failure is not None
    assert job.failure.code is ErrorCode.INVALID_REQUEST
    assert not job.failure.retryable
    assert "cannot caption several pictures together" in job.failure.message
    assert "video.mode per_frame" in job.failure.message


# That it is the oracle's: text_decoder.generate(encoder_hidden_states=…) on states one after the
# other, in float64, where nothing may differ.

LIMITS = MediaSettings()
PLUGINS = PluginSettings(enabled=("video",))
OPTIONS = GenerationOptions(num_beams=3, min_new_tokens=6, prompt="a picture of")


def load(folder: str, backend: str) -> Captioner:
    return load_captioner(folder, device="cpu", dtype="float64", backend=backend)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_blip(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def oracle(checkpoint: str) -> Captioner:
    return load(checkpoint, "transformers")


@pytest.fixture(scope="module")
def engine(checkpoint: str) -> Iterator[ProcessEngine]:
    """It waits for company, so that all that comes at once shares a batch."""
    settings = EngineSettings(max_batch=128, linger_seconds=1)
    engine = ProcessEngine(load, (checkpoint, "fast"), settings)
    engine.start()
    with closing(engine):
        yield engine


@pytest.fixture(scope="module")
def pipeline(engine: ProcessEngine) -> Pipeline:
    plugins = open_plugins(PLUGINS, LIMITS)
    limits = MediaSettings(allowed_roots=(Path("/"),))
    return Pipeline(engine, InlineSampler(plugins, limits), limits, plugins=plugins)


def film(folder: Path, seeds: Sequence[int], name: str = "film") -> Path:
    """A second of each picture; every frame is stored whole, so that its place changes nothing."""
    pictures = [Image.fromarray(random_picture(seed, 48, 64)) for seed in seeds]
    return write_video(folder / f"{name}.avi", pictures, rate=1, codec="ffv1", gop=1)


def frames_of(path: Path, size: int, video: VideoOptions) -> list[Frame]:
    sampler = InlineSampler(open_plugins(PLUGINS, LIMITS), LIMITS)
    request = CaptionRequest(source=Source(str(path)), video=video)
    return list(sampler.sample(Media(path, path.name), request, size))


def texts(captions: Sequence[Caption]) -> list[str]:
    return [caption.text for caption in captions]


def test_mixed_batches_of_joint_and_single_captions_are_the_oracles(
    tmp_path: Path, engine: ProcessEngine, pipeline: Pipeline, oracle: Captioner
) -> None:
    """Three videos and four pictures at once, through decoders, pipeline and engine process."""
    size = engine.info.image_size
    videos = [film(tmp_path, range(40), "long")]  # 20 of 40 are looked at together
    videos += [film(tmp_path, range(50, 50 + count), f"{count}") for count in (8, 3)]
    stills = []
    for seed in range(60, 64):
        stills.append(tmp_path / f"{seed}.png")
        Image.fromarray(random_picture(seed)).save(stills[-1])
    requests = [
        CaptionRequest(
            source=Source(str(path)),
            options=OPTIONS,
            video=VideoOptions(strategy="fps", fps=1, mode="joint"),
            lane=Lane.VIDEO if path.suffix == ".avi" else Lane.INTERACTIVE,
        )
        for path in (*videos, *stills)
    ]
    expected, fed = [], []
    for request, path in zip(requests, (*videos, *stills), strict=True):
        frames = frames_of(path, size, request.video)
        assert not any(frame.repeated for frame in frames)
        kept = [frame.pixels for frame in (frames[::2] if len(frames) > 32 else frames)]
        fed.append(len(kept))
        expected.append(oracle.generate_joint([kept], OPTIONS)[0][0])
    assert fed == [20, 8, 3, 1, 1, 1, 1]
    assert len({round(one.score, 6) for one in expected}) == len(expected)
    assert len({one.text for one in expected}) > 2
    gate = threading.Barrier(len(requests))

    def run(request: CaptionRequest) -> Sequence[Caption]:
        gate.wait()
        return pipeline.caption(request).captions

    with ThreadPoolExecutor(len(requests)) as executor:
        found = list(executor.map(run, requests))
    assert [texts(captions) for captions in found] == [[one.text] for one in expected]
    for (caption,), one in zip(found, expected, strict=True):
        assert caption.score == pytest.approx(one.score, rel=1e-9)
        assert caption.beam_score == pytest.approx(one.beam_score, rel=1e-9)
    pipeline.caption(requests[-1])  # a batch is counted before the next one's results are told
    assert engine.stats.pictures >= sum(fed)
    assert engine.stats.batches <= 3, "joint and single captions did not share batches"


def test_both_modes_at_once_and_each_alone_say_the_same(tmp_path: Path, pipeline: Pipeline) -> None:
    path = film(tmp_path, range(50, 58))

    def captions(mode: Any) -> Sequence[Caption]:
        return pipeline.caption(
            CaptionRequest(source=Source(str(path)), options=OPTIONS, video=VideoOptions(mode=mode))
        ).captions

    both, per_frame, joint = (captions(mode) for mode in ("both", "per_frame", "joint"))
    assert texts(both) == texts([*per_frame, *joint])
    assert [one.origin for one in both] == ["model"] * len(per_frame) + ["joint"]


def test_frames_together_have_no_order(tmp_path: Path, pipeline: Pipeline) -> None:
    seeds = list(range(70, 78))
    options = VideoOptions(mode="joint")

    def told(name: str, order: Sequence[int]) -> Caption:
        path = film(tmp_path, order, name)
        request = CaptionRequest(source=Source(str(path)), options=OPTIONS, video=options)
        (caption,) = pipeline.caption(request).captions
        return caption

    forwards, backwards, other = (
        told("forwards", seeds), told("backwards", seeds[::-1]), told("other", range(80, 88))
    )  # fmt: skip
    assert backwards.text == forwards.text
    assert backwards.score == pytest.approx(forwards.score, rel=1e-9)
    assert other.score != pytest.approx(forwards.score, rel=1e-3)

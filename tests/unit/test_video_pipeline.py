"""What frames say of their video on the way from a decoder through the pipeline to plugins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner import Caption, Frame, FrameCaptions, hookimpl
from captioner.domain import CaptionRequest, JobState, Lane
from captioner.engine import InlineEngine
from captioner.pipeline import Pipeline
from captioner.plugins import Plugins
from captioner.sampling import InlineSampler
from captioner.sampling.wire import max_bytes, pack, unpack
from captioner.settings import MediaSettings, Settings
from captioner.source import Source
from captioner.testing import FakeCaptionModel, caption_with

SIZE = 8


def coloured(shade: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((SIZE, SIZE, 3), shade, np.uint8)


class Plugin:
    """Frames of its own making, in threes that look alike; remembers what it is told of them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.frames: Sequence[FrameCaptions] = ()
        self.limits: MediaSettings | None = None

    @hookimpl
    def sample_frames(self, limits: MediaSettings) -> Iterator[Frame]:
        self.limits = limits
        for number in range(self.count):
            yield Frame(
                coloured(number // 3 + 1),
                float(number),
                media_seconds=99.5,
                repeated=number % 3 > 0,
            )

    @hookimpl
    def combine_captions(self, frames: Sequence[FrameCaptions]) -> Sequence[Caption]:
        self.frames = frames
        return [frame.captions[0] for frame in frames]


@pytest.mark.parametrize("count", [1, 2, 60])
def test_what_is_repeated_has_captions_and_costs_none(count: int) -> None:
    plugin, model = Plugin(count), FakeCaptionModel(SIZE)
    job = caption_with(plugin, model=model)
    assert job.state is JobState.SUCCEEDED
    assert sum(model.batches) == math.ceil(count / 3)
    shades = [number // 3 + 1 for number in range(count)]
    said = [frame.captions[0].text for frame in plugin.frames]
    assert said == [f"mean colour {shade} {shade} {shade}" for shade in shades]
    assert [frame.time_seconds for frame in plugin.frames] == list(range(count))
    assert [caption.frame_seconds for caption in job.captions] == list(range(count))
    assert {frame.media_seconds for frame in plugin.frames} == {99.5}


def test_videos_fill_batches_together(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")  # the plugin looks at none

    class Lively:
        @hookimpl
        def sample_frames(self) -> Iterator[Frame]:
            for number in range(8):
                yield Frame(coloured(number + 1), float(number))

    plugins = Plugins()
    plugins.register(Lively(), "lively")
    limits = MediaSettings(allowed_roots=(tmp_path,))
    model = FakeCaptionModel(SIZE, hold=True)
    engine = InlineEngine(lambda: model, max_batch=16)
    engine.start()
    pipeline = Pipeline(engine, InlineSampler(plugins, limits), limits, plugins=plugins)
    requests = [
        CaptionRequest(source=Source(str(tmp_path / "a.png")), lane=Lane.VIDEO) for _ in range(8)
    ]
    begun = [pipeline.begin(request) for request in requests]
    model.release.set()
    for captioning in begun:
        assert len(captioning.result().captions) == 8
    engine.close()
    assert sum(model.batches) == 64
    assert model.batches.count(16) >= 3, "two videos' frames fill a batch; one's are half of it"


def test_a_first_frame_that_repeats_nothing_is_captioned() -> None:
    class Liar:
        @hookimpl
        def sample_frames(self) -> list[Frame]:
            return [Frame(coloured(7), 0.0, repeated=True)]

    assert caption_with(Liar()).caption == "mean colour 7 7 7"


def test_plugins_are_told_the_operators_limits(tmp_path: Path) -> None:
    plugin = Plugin(1)
    Image.new("RGB", (9, 9), (7, 8, 9)).save(tmp_path / "a.png")
    limits = MediaSettings(max_video_seconds=17, allowed_roots=(tmp_path,))
    caption_with(
        plugin, tmp_path / "a.png", settings=Settings(data_dir=tmp_path / "data", media=limits)
    )
    assert plugin.limits is not None
    assert plugin.limits.max_video_seconds == 17


# --- On the pipe ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"time_seconds": 1.5, "expected_frames": 0, "media_seconds": 0.0},
        {"expected_frames": 2**40, "media_seconds": 3.25, "repeated": True, "aspect_ratio": 1.778},
    ],
)
def test_all_that_is_known_of_a_frame_arrives(facts: dict[str, float]) -> None:
    frame = Frame(coloured(5), **facts)  # type: ignore[arg-type]  # by name
    data = pack(frame)
    assert len(data) <= max_bytes(SIZE)
    found = unpack(data, SIZE)
    assert isinstance(found, Frame)
    np.testing.assert_array_equal(found.pixels, frame.pixels)
    names = ("time_seconds", "expected_frames", "media_seconds", "repeated", "aspect_ratio")
    assert [getattr(found, name) for name in names] == [getattr(frame, name) for name in names]


@pytest.mark.parametrize("name", ["time_seconds", "media_seconds", "aspect_ratio"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, -1.0])
def test_numbers_that_no_frame_has_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match="a frame with a time or ratio of"):
        unpack(pack(Frame(coloured(5), **{name: value})), SIZE)  # type: ignore[arg-type]  # by name


def test_the_largest_frame_fits_into_the_longest_message() -> None:
    for size in (8, 384, 1024):
        assert len(pack(Frame(np.zeros((size, size, 3), np.uint8)))) <= max_bytes(size)

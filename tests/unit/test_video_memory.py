"""A long video takes no more memory than a short one: frames are streamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from captioner import CaptionRequest, Source, VideoOptions
from captioner.captioning import FRAMES_IN_FLIGHT
from captioner.engine import InlineEngine
from captioner.pipeline import Pipeline
from captioner.plugins import load_plugins
from captioner.sampling import ChildSampler
from captioner.settings import LogSettings, MediaSettings, PluginSettings
from captioner.testing import FakeCaptionModel
from videos import write_video

HOURS = float(os.environ.get("CAPTIONER_TEST_VIDEO_HOURS", "0.25"))
INTERVAL_SECONDS = 10
RATE = 5
SIDE = 384
FRAME_BYTES = SIDE * SIDE * 3
PLUGINS = PluginSettings(enabled=("video",))

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


def memory_bytes(pid: int | str, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def hours_of_colours() -> Iterator[Image.Image]:
    """Another colour every ten seconds, none black."""
    for number in range(int(HOURS * 3600 * RATE)):
        shade = number // (RATE * INTERVAL_SECONDS)
        yield Image.new("RGB", (320, 240), (64 + shade * 37 % 190, shade * 91 % 256, 40))


def test_hours_of_video_are_streamed(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "long.mp4",
        hours_of_colours(),
        rate=RATE,
        gop=50,
        options={"preset": "ultrafast"},
    )
    limits = MediaSettings(allowed_roots=(tmp_path,), decoders=1)
    video = VideoOptions(strategy="interval", interval_seconds=INTERVAL_SECONDS)
    model = FakeCaptionModel(SIDE)
    engine = InlineEngine(lambda: model, max_batch=8)
    engine.start()
    with closing(engine), closing(ChildSampler(PLUGINS, limits, LogSettings())) as sampler:
        pipeline = Pipeline(engine, sampler, limits, plugins=load_plugins(PLUGINS))
        few = CaptionRequest(source=Source(str(path)), video=VideoOptions(frames=20))
        pipeline.caption(few)  # so that everything is loaded
        (decoder,) = sampler._idle
        pid = decoder._child.pid
        before = memory_bytes("self", "VmRSS"), memory_bytes(pid, "VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # begins its peak anew
        request = CaptionRequest(source=Source(str(path)), video=video)
        captions = pipeline.caption(request).captions
        after = memory_bytes("self", "VmHWM"), memory_bytes(pid, "VmHWM")
    frames = int(HOURS * 3600 / INTERVAL_SECONDS)
    assert sum(model.batches) >= 0.95 * frames
    assert captions[0].end_seconds == pytest.approx(HOURS * 3600)
    print(
        f"{frames} frames; worker {_mib(before[0], after[0])}; decoder {_mib(before[1], after[1])}"
    )
    assert after[0] - before[0] < (FRAMES_IN_FLIGHT + 16) * FRAME_BYTES
    assert after[1] - before[1] < 32 * 2**20


def _mib(before: int, after: int) -> str:
    return f"{before / 2**20:.0f} MiB, then at most {after / 2**20:.0f}"

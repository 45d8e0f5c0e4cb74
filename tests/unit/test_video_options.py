"""What a request may ask of a video, from JSON and the command line to the database and back."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner import CaptionRequest, GenerationOptions, Source, VideoOptions
from captioner.cli.requests import parse_options, parse_video
from captioner.errors import InvalidRequestError
from captioner.options import AltTextOptions, options_from_mapping, options_mapping
from captioner.request_json import request_from_item
from captioner.settings import GenerationSettings
from captioner.store.mapping import fingerprint
from captioner.testing import memory_store


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"strategy": "random"}, "video.strategy must be uniform, .* or timestamps, not 'random'"),
        ({"strategy": []}, "video.strategy"),
        ({"mode": "fused"}, "video.mode must be per_frame, joint or both, not 'fused'"),
        ({"frames": 0}, "video.frames must be from 1 to 512, not 0"),
        ({"frames": 513}, "video.frames"),
        ({"frames": 2.5}, "video.frames must be a whole number"),
        ({"frames": True}, "video.frames"),
        ({"strategy": "interval"}, "video.strategy interval needs video.interval_seconds"),
        (
            {"strategy": "interval", "interval_seconds": 0},
            "interval_seconds must be at least 0.001, not 0",
        ),
        ({"strategy": "interval", "interval_seconds": 5e-324}, "at least 0.001, not 4.94066e-324"),
        ({"strategy": "interval", "interval_seconds": math.nan}, "interval_seconds must be a num"),
        ({"strategy": "interval", "interval_seconds": "1"}, "interval_seconds must be a number"),
        ({"interval_seconds": 1}, "interval_seconds belongs to video.strategy interval, not unif"),
        ({"strategy": "fps"}, "video.strategy fps needs video.fps"),
        (
            {"strategy": "fps", "fps": 241},
            "video.fps must be at least 1e-06 and at most 240, not 241",
        ),
        ({"strategy": "fps", "fps": 5e-324}, "video.fps must be at least 1e-06"),
        ({"strategy": "fps", "fps": -1}, "video.fps"),
        ({"strategy": "keyframes", "fps": 1}, "video.fps belongs to video.strategy fps"),
        ({"strategy": "timestamps"}, "video.strategy timestamps needs video.timestamps"),
        ({"strategy": "timestamps", "timestamps": [-1]}, "video.timestamps must be at most 512"),
        ({"strategy": "timestamps", "timestamps": ["1"]}, "must be a list of seconds"),
        ({"strategy": "timestamps", "timestamps": "12"}, "must be a list of seconds"),
        ({"strategy": "timestamps", "timestamps": [math.inf]}, "must be a list of seconds"),
        ({"strategy": "timestamps", "timestamps": list(range(513))}, "at most 512 times"),
        ({"strategy": "timestamps", "timestamps": [1], "frames": 3}, "exclude each other"),
        ({"frame": 3}, "unknown field in options.video; known are fps, frames"),
        ([], "options.video must be a JSON object"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(values: Any, problem: str) -> None:
    with pytest.raises(InvalidRequestError, match=problem) as caught:
        VideoOptions.from_mapping(values)
    assert "\n" not in caught.value.message


def test_times_are_kept_in_order_and_once() -> None:
    options = VideoOptions(strategy="timestamps", timestamps=(3, 1.5, 3.0, 0))
    assert options.timestamps == (0.0, 1.5, 3.0)


asked = st.one_of(
    st.builds(VideoOptions, frames=st.none() | st.integers(1, 512)),
    st.builds(
        VideoOptions,
        strategy=st.just("interval"),
        interval_seconds=st.floats(1e-3, 1e5),
        frames=st.none() | st.integers(1, 512),
    ),
    st.builds(VideoOptions, strategy=st.just("fps"), fps=st.floats(0.01, 240)),
    st.builds(VideoOptions, strategy=st.just("keyframes"), mode=st.sampled_from(["joint", "both"])),
    st.builds(
        VideoOptions,
        strategy=st.just("timestamps"),
        timestamps=st.lists(st.floats(0, 1e6), min_size=1, max_size=20).map(tuple),
    ),
)


@given(video=asked)
def test_survives_storage_beside_the_other_options(video: VideoOptions) -> None:
    every = (GenerationOptions(num_beams=2), AltTextOptions(decorative=True), video)
    stored = json.loads(json.dumps(options_mapping(*every)))
    assert options_from_mapping(stored) == every


def test_a_request_that_asks_for_nothing_is_the_same_request_as_ever() -> None:
    request = CaptionRequest(source=Source("/a.mp4"))
    assert "video" not in options_mapping(request.options, request.alt_text, request.video)
    other = CaptionRequest(source=Source("/a.mp4"), video=VideoOptions(frames=4))
    assert fingerprint(request) != fingerprint(other)


def test_the_database_gives_back_what_was_asked_for() -> None:
    video = VideoOptions(strategy="timestamps", timestamps=(1.5, 3))
    request = CaptionRequest(source=Source("/a.mp4"), video=video)
    with memory_store() as store:
        (submission,) = store.add([request])
        found = store.get(request.id)
    assert submission.job.video == found.video == found.request.video == video
    assert found.as_mapping()["options"]["video"] == {
        "strategy": "timestamps",
        "timestamps": [1.5, 3.0],
    }


def test_items_and_messages_name_it_among_the_options() -> None:
    fields = {"source": "/a.mp4", "options": {"video": {"strategy": "fps", "fps": 2}}}
    assert request_from_item(fields, {}).video == VideoOptions(strategy="fps", fps=2)
    defaults = {"video": {"frames": 3}}
    assert request_from_item({"source": "/a.mp4"}, defaults).video == VideoOptions(frames=3)
    assert request_from_item(fields, defaults).video == VideoOptions(strategy="fps", fps=2)
    with pytest.raises(InvalidRequestError, match=r"options.video must be a JSON object"):
        request_from_item({"source": "/a.mp4", "options": {"video": 5}}, {})


NOTHING: dict[str, Any] = {
    "frames": None,
    "every": None,
    "fps": None,
    "keyframes": False,
    "at": None,
    "mode": None,
}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, VideoOptions()),
        ({"frames": 4}, VideoOptions(frames=4)),
        (
            {"every": 10.0, "frames": 4},
            VideoOptions(strategy="interval", interval_seconds=10, frames=4),
        ),
        ({"fps": 0.5, "mode": "both"}, VideoOptions(strategy="fps", fps=0.5, mode="both")),
        ({"keyframes": True}, VideoOptions(strategy="keyframes")),
        ({"at": "1.5,3"}, VideoOptions(strategy="timestamps", timestamps=(1.5, 3))),
    ],
)
def test_flags(flags: dict[str, Any], expected: VideoOptions) -> None:
    assert parse_video(**{**NOTHING, **flags}) == expected


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"every": 1.0, "fps": 1.0}, "--every and --fps exclude each other"),
        ({"keyframes": True, "at": "1"}, "--keyframes and --at exclude each other"),
        ({"at": "1;2"}, "--at must be seconds such as 1.5,3, not '1;2'"),
        ({"at": ""}, "needs video.timestamps"),
        ({"at": "nan"}, "list of seconds"),
        ({"every": 0.0}, "at least 0.001"),
        ({"mode": "all"}, "video.mode"),
    ],
)
def test_flags_that_cannot_be_used(flags: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidRequestError, match=problem):
        parse_video(**{**NOTHING, **flags})


def test_there_are_flags_instead_of_an_option() -> None:
    with pytest.raises(InvalidRequestError, match="for video there are --frames"):
        parse_options(None, ['video={"frames": 2}'], GenerationSettings())

"""What looks like a video waits among the videos, whichever door it comes through."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from captioner.domain import CaptionRequest, Lane
from captioner.errors import InvalidRequestError
from captioner.jobs import Jobs
from captioner.options import VideoOptions
from captioner.request_json import lane_of, request_from_item, request_from_message
from captioner.settings import Settings
from captioner.source import Source

EVERY_TEN_SECONDS = {"strategy": "interval", "interval_seconds": 10}
VIDEOS: list[dict[str, Any]] = [
    {"source": "/media/film.mp4"},
    {"source": "/media/film.MOV"},
    {"source": "file:///media/a%20film.webm"},
    {"source": "https://cms.example/film.mkv?token=a.jpg#t=3"},
    {"source": "data:video/mp4;base64,AAAA"},
    {"source": "https://cms.example/17", "options": {"video": {"frames": 4}}},
    {"source": "/media/turning.gif", "options": {"video": EVERY_TEN_SECONDS}},
]
PICTURES: list[dict[str, Any]] = [
    {"source": "/media/a.jpg"},
    {"source": "/media/film.mp4.jpg"},
    {"source": "/films.mp4/poster"},
    {"source": "https://cms.example/17?of=film.mp4"},
    {"source": "data:image/png;base64,AAAA"},
    {"source": "/media/a.jpg", "options": {"num_beams": 2, "video": {}}},
]


def message(fields: dict[str, Any]) -> CaptionRequest:
    return request_from_message({"id": str(uuid4()), **fields}, {})


@pytest.mark.parametrize("fields", VIDEOS, ids=str)
def test_a_video_is_known_by_its_looks(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert message(fields).lane is Lane.VIDEO
    assert request_from_item(fields, {}).lane is Lane.VIDEO
    with Jobs(Settings(data_dir=tmp_path)) as jobs:
        assert jobs.submit(fields["source"], options=fields.get("options")).lane is Lane.VIDEO


@pytest.mark.parametrize("fields", PICTURES, ids=str)
def test_anything_else_is_a_picture(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert message(fields).lane is Lane.INTERACTIVE
    assert request_from_item(fields, {}).lane is Lane.BULK
    with Jobs(Settings(data_dir=tmp_path)) as jobs:
        job = jobs.submit(fields["source"], options=fields.get("options"))
        assert job.lane is Lane.INTERACTIVE


@pytest.mark.parametrize("lane", list(Lane))
def test_who_names_a_lane_has_it(tmp_path: Path, lane: Lane) -> None:
    for source in ("/film.mp4", "/a.jpg"):
        assert message({"source": source, "lane": lane.value}).lane is lane
        with Jobs(Settings(data_dir=tmp_path)) as jobs:
            assert jobs.submit(source, lane=lane).lane is lane
    with pytest.raises(InvalidRequestError, match="lane must be"):
        message({"source": "/film.mp4", "lane": None})


def test_options_of_videos_may_come_by_themselves(tmp_path: Path) -> None:
    with Jobs(Settings(data_dir=tmp_path)) as jobs:
        job = jobs.submit("https://cms.example/17", video=VideoOptions(frames=4))
        assert job.lane is Lane.VIDEO
    assert lane_of(Source("/a.jpg"), VideoOptions(), Lane.BULK) is Lane.BULK

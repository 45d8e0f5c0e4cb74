"""Films of drawn scenes through the whole pipeline: what is seen is told, and when."""

from __future__ import annotations

import io
import itertools
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import webvtt

from captioner import Caption, CaptionRequest, Source, VideoOptions
from captioner.demo.films import Film, random_film, write_film
from captioner.engine import InlineEngine
from captioner.inference import load_captioner
from captioner.pipeline import Pipeline
from captioner.plugins import load_plugins
from captioner.sampling import ChildSampler
from captioner.settings import LogSettings, MediaSettings, PluginSettings
from captioner.vtt import web_vtt

#: For all that was promised: CAPTIONER_TEST_FILMS=100, some minutes.
FILMS = int(os.environ.get("CAPTIONER_TEST_FILMS", "8"))
LEAST_RIGHT = 0.95
PLUGINS = PluginSettings(enabled=("video",))


def options(strategy: str, film: Film) -> tuple[VideoOptions, float]:
    """How a film is sampled, and the seconds between two frames at most."""
    duration = film.duration_seconds
    if strategy == "uniform":
        return VideoOptions(), duration / 8
    if strategy == "interval":
        return VideoOptions(strategy="interval", interval_seconds=0.5), 0.5
    rng, times = random.Random(duration), [0.1]
    while times[-1] < duration - 0.8:
        times.append(times[-1] + rng.uniform(0.3, 0.8))
    return VideoOptions(strategy="timestamps", timestamps=tuple(times)), 0.8


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Film, Path]]:
    folder = tmp_path_factory.mktemp("films")
    made = [(random_film(seed), folder / f"film-{seed}.mp4") for seed in range(FILMS)]
    for film, path in made:
        write_film(film, path)
    return made


@pytest.fixture(scope="module")
def pipeline(films: list[tuple[Film, Path]]) -> Iterator[Pipeline]:
    limits = MediaSettings(allowed_roots=(films[0][1].parent,), decoders=2)
    engine = InlineEngine(lambda: load_captioner("demo", device="cpu", dtype="float32"), 32)
    engine.start()
    with closing(engine), closing(ChildSampler(PLUGINS, limits, LogSettings())) as sampler:
        yield Pipeline(engine, sampler, limits, plugins=load_plugins(PLUGINS))


def check_vtt(captions: Sequence[Caption]) -> None:
    """Another parser reads the segments in WebVTT: all of them, at their times, one by one."""
    cues = webvtt.from_buffer(io.BytesIO(web_vtt(captions).encode())).captions
    assert [cue.text for cue in cues] == [one.text for one in captions[1:]]
    spans = [(seconds(cue.start), seconds(cue.end)) for cue in cues]
    for span, one in zip(spans, captions[1:], strict=True):
        assert span == pytest.approx((one.start_seconds, one.end_seconds), abs=0.001)
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(spans))


def seconds(timestamp: str) -> float:
    hours, minutes, rest = timestamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


@pytest.mark.parametrize("strategy", ["uniform", "interval", "timestamps"])
def test_every_scene_has_its_caption_at_its_time(
    films: list[tuple[Film, Path]], pipeline: Pipeline, strategy: str
) -> None:
    def told(film: Film, path: Path) -> str | None:
        video, tolerance_seconds = options(strategy, film)
        captions = pipeline.caption(CaptionRequest(source=Source(str(path)), video=video)).captions
        check_vtt(captions)
        if film.told_by(captions, tolerance_seconds):
            return None
        said = [(one.start_seconds, one.end_seconds, one.text) for one in captions[1:]]
        return f"{path.name}: {said} instead of {film.timeline}"

    with ThreadPoolExecutor(8) as executor:
        wrong = [one for one in executor.map(told, *zip(*films, strict=True)) if one]
    print(f"{strategy}: {FILMS - len(wrong)} of {FILMS} right")
    assert len(wrong) <= (1 - LEAST_RIGHT) * FILMS, "\n".join(wrong)


def test_a_film_told_wrongly_is_found_out(
    films: list[tuple[Film, Path]], pipeline: Pipeline
) -> None:
    (film, path), (other, _) = films[:2]
    video, tolerance_seconds = options("interval", film)
    captions = pipeline.caption(CaptionRequest(source=Source(str(path)), video=video)).captions
    assert film.told_by(captions, tolerance_seconds)
    assert not other.told_by(captions, tolerance_seconds)
    assert not film.told_by(captions[:-1], tolerance_seconds)
    assert not film.told_by(captions, 0.0)

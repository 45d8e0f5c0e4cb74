"""Videos from the command line through a worker to SQL and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import webvtt
from PIL import Image

from captioner.demo.films import Film, random_film, write_film
from captioner.domain import Caption, Lane
from captioner.jobs import Jobs
from processes import captioner, environment, running_worker, settings_of
from videos import write_song_with_cover

FILM = random_film(7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_film(FILM, folder / "film.mp4")
    write_song_with_cover(folder / "song.m4a")
    Image.new("RGB", (20, 10), (10, 20, 30)).save(folder / "a.png")
    return folder


@pytest.fixture(scope="module")
def env(folder: Path) -> Iterator[dict[str, str]]:
    """Of the embedded service, with a worker that runs."""
    env = environment(folder)
    with running_worker(folder, env):
        yield env


def submitted(env: dict[str, str], *arguments: str, code: int = 0) -> dict[str, Any]:
    """The one job of `captioner submit`, when it has ended."""
    ran = captioner("submit", *arguments, "--wait", "--timeout", "60", "--json", env=env)
    assert ran.returncode == code, ran.stderr
    job: dict[str, Any]
    (job,) = json.loads(ran.stdout)
    return job


def told(film: Film, job: dict[str, Any], tolerance_seconds: float) -> bool:
    captions = [Caption(**one) for one in job["captions"]]
    return film.told_by(captions, tolerance_seconds)


@pytest.fixture(scope="module")
def job(env: dict[str, str], folder: Path) -> dict[str, Any]:
    return submitted(env, str(folder / "film.mp4"), "--every", "0.5")


def test_a_film_is_told_in_its_own_lane(job: dict[str, Any]) -> None:
    assert (job["state"], job["lane"]) == ("succeeded", "video")
    assert told(FILM, job, 0.5)
    summary, *parts = job["captions"]
    assert (summary["start_seconds"], summary["end_seconds"]) == (0, FILM.duration_seconds)
    assert summary["text"] in {part["text"] for part in parts}
    for part in parts:
        assert part["start_seconds"] <= part["frame_seconds"] < part["end_seconds"]
        assert part["frame_seconds"] % 0.5 == 0
    assert summary["frame_seconds"] in {part["frame_seconds"] for part in parts}
    assert all(part["alt_text"] and part["origin"] == "model" for part in parts)
    assert job["options"]["video"] == {"strategy": "interval", "interval_seconds": 0.5}


def test_web_vtt_on_standard_output(job: dict[str, Any], env: dict[str, str], folder: Path) -> None:
    ran = captioner("status", job["id"], "--vtt", env=env)
    assert ran.returncode == 0, ran.stderr
    (folder / "film.vtt").write_text(ran.stdout)
    cues = webvtt.read(str(folder / "film.vtt")).captions
    assert [cue.text for cue in cues] == [text for _, _, text in FILM.timeline]
    assert cues[0].start == "00:00:00.000"


def test_a_contact_sheet_of_the_job(job: dict[str, Any], env: dict[str, str], folder: Path) -> None:
    path = folder / "sheet.jpg"
    ran = captioner("status", job["id"], "--contact-sheet", str(path), env=env)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.splitlines() == [f"contact sheet: {path}"]
    frames = int(FILM.duration_seconds * 2)
    with Image.open(path) as sheet:
        assert sheet.format == "JPEG"
        columns = (sheet.width - 16) // (320 + 16)
        assert sheet.height > 320 * (frames // columns)


def test_status_shows_the_timeline(job: dict[str, Any], env: dict[str, str]) -> None:
    shown = captioner("status", job["id"], env=env).stdout
    for _, _, text in FILM.timeline:
        assert text in shown
    assert "0:00.0–0:03.8" in shown
    assert "keywords" in shown
    assert "-0.000" not in shown


def test_all_frames_together_beside_the_timeline(env: dict[str, str], folder: Path) -> None:
    film = str(folder / "film.mp4")
    job = submitted(env, film, "--every", "0.5", "--video-mode", "both")
    assert told(FILM, job, 0.5)
    joint = job["captions"][-1]
    assert joint["origin"] == "joint"
    assert (joint["start_seconds"], joint["end_seconds"]) == (0, FILM.duration_seconds)
    assert joint["alt_text"]
    shown = captioner("status", job["id"], env=env).stdout
    assert shown.count("(all frames together: experimental)") == 1
    vtt = captioner("status", job["id"], "--vtt", env=env).stdout
    (folder / "both.vtt").write_text(vtt)
    cues = webvtt.read(str(folder / "both.vtt")).captions
    assert [cue.text for cue in cues] == [text for _, _, text in FILM.timeline]


@pytest.mark.long
def test_all_frames_together_alone(env: dict[str, str], folder: Path) -> None:
    film, sheet = str(folder / "film.mp4"), folder / "joint.jpg"
    job = submitted(env, film, "--video-mode", "joint")
    assert [one["origin"] for one in job["captions"]] == ["joint"]
    said = job["captions"][0]["text"]
    ran = captioner("status", job["id"], "--contact-sheet", str(sheet), env=env)
    assert ran.returncode == 0, ran.stderr
    with Image.open(sheet) as image:
        assert image.format == "JPEG"
    vtt = captioner("status", job["id"], "--vtt", env=env).stdout
    (folder / "joint.vtt").write_text(vtt)
    (cue,) = webvtt.read(str(folder / "joint.vtt")).captions
    assert (cue.start, cue.text) == ("00:00:00.000", said)
    ran = captioner("caption", film, "--video-mode", "joint", env=env)
    assert ran.returncode == 0, ran.stderr
    assert f"{said}  (all frames together: experimental)" in ran.stdout
    ran = captioner("caption", film, "--video-mode", "joint", "--json", env=env)
    (entry,) = json.loads(ran.stdout)
    assert (entry["caption"], entry["joint"]["caption"]) == (said, said)


def test_the_source_that_is_gone_is_one_line(env: dict[str, str], folder: Path) -> None:
    path = folder / "soon-gone.mp4"
    write_film(random_film(1), path)
    job = submitted(env, str(path), "--frames", "2")
    assert job["options"]["video"] == {"frames": 2}
    path.unlink()
    ran = captioner("status", job["id"], "--contact-sheet", str(folder / "b.jpg"), env=env)
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [f"captioner: {path}: no such file"]
    assert not (folder / "b.jpg").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["--vtt", "PICTURE"], 1, "has no segments: it was no video"),
        (["--contact-sheet", "x.jpg", "PICTURE"], 1, "has no segments: it was no video"),
        (["--vtt", "SONG"], 1, "has no segments: it is failed"),
        (["--vtt", "PICTURE", "SONG"], 2, "are of one job; name one"),
        (["--vtt", "--json", "SONG"], 2, "--vtt and --json exclude each other"),
    ],
)
def test_what_has_no_segments_says_so(
    env: dict[str, str], folder: Path, arguments: list[str], code: int, problem: str
) -> None:
    picture = submitted(env, str(folder / "a.png"), "--client-key", "picture")
    song = submitted(env, str(folder / "song.m4a"), "--client-key", "song", code=1)
    assert song["error"]["code"] == "video_no_frames"
    assert picture["lane"] == "interactive"
    ids = {"PICTURE": picture["id"], "SONG": song["id"]}
    ran = captioner("status", *(ids.get(one, one) for one in arguments), env=env, cwd=folder)
    assert ran.returncode == code
    (line,) = ran.stderr.splitlines()
    assert problem in line
    assert not (folder / "x.jpg").exists()


def test_from_python(env: dict[str, str], folder: Path) -> None:
    with Jobs(settings_of(env)) as jobs:
        job = jobs.submit(
            str(folder / "film.mp4"),
            video={"strategy": "timestamps", "timestamps": [1, 5, 9]},
            lane=Lane.VIDEO,
        )
        ended = jobs.wait(job.id, timeout_seconds=60)
    assert [one.text for one in ended.captions[1:]] == [text for _, _, text in FILM.timeline]
    assert [one.start_seconds for one in ended.captions[1:]] == [0, 3, 7]


@pytest.mark.long
def test_right_here_without_a_queue(env: dict[str, str], folder: Path) -> None:
    film, sheet = folder / "film.mp4", folder / "here.jpg"
    ran = captioner(
        "caption", str(film), "--fps", "2", "--contact-sheet", str(sheet), "--sidecar", env=env
    )
    assert ran.returncode == 0, ran.stderr
    for _, _, text in FILM.timeline:
        assert text in ran.stdout
    assert "0:06.8–0:10.3" in ran.stdout
    with Image.open(sheet) as image:
        assert image.format == "JPEG"
    assert len(webvtt.read(str(folder / "film.vtt")).captions) == 3
    ran = captioner("caption", str(film), "--at", "1,5,9", "--json", env=env)
    (entry,) = json.loads(ran.stdout)
    assert [part["caption"] for part in entry["segments"]] == [t for _, _, t in FILM.timeline]
    assert "background" in entry["keywords"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--every", "1", "--keyframes"], "--every and --keyframes exclude each other"),
        (["--frames", "0"], "video.frames must be from 1 to 512, not 0"),
        (["--video-mode", "all"], "video.mode must be per_frame, joint or both"),
        (["-o", 'video={"frames": 1}'], "for video there are --frames"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    env: dict[str, str], folder: Path, arguments: list[str], problem: str
) -> None:
    for command in ("submit", "caption"):
        ran = captioner(command, str(folder / "film.mp4"), *arguments, env=env)
        assert ran.returncode == 2
        (line,) = ran.stderr.splitlines()
        assert problem in line

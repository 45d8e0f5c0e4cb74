"""`make demo` is this command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from processes import captioner, environment


def demo_environment(folder: Path) -> dict[str, str]:
    """As a newcomer has it: nothing set but where data goes, so that tests share nothing."""
    env = environment(folder)
    for name in ("CAPTIONER_MODEL__ID", "CAPTIONER_MEDIA__ALLOWED_ROOTS"):
        del env[name]
    return env


@pytest.mark.long
def test_the_demo_ends_with_right_captions(tmp_path: Path) -> None:
    result = captioner("demo", "--json", env=demo_environment(tmp_path), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert len(report["jobs"]) == 24
    for job in report["jobs"]:
        assert set(job) == {"id", "source", "state", "caption", "expected", "score"}
        assert job["state"] == "succeeded"
        assert Path(job["source"]).is_file()
    right = sum(job["caption"] == job["expected"] for job in report["jobs"])
    assert right == report["right"] >= 23
    assert any(job["caption"].startswith("a photography of") for job in report["jobs"])
    assert report["images_per_second"] > 0
    video = report["video"]
    assert video["right"] is True
    assert [part["text"] for part in video["job"]["captions"][1:]] == [
        text for _, _, text in video["timeline"]
    ]
    with Image.open(video["contact_sheet"]) as sheet:
        assert sheet.format == "JPEG"
    assert report["worker_exit_code"] == 0


@pytest.mark.long
@pytest.mark.integration
def test_the_demo_runs_on_redis_and_postgresql_with_photos_of_ones_own(
    tmp_path: Path, redis_url: str, postgres_url: str
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 48), (80 * number, 40, 40)).save(photos / f"{number}.jpg")
    result = captioner(
        "demo", "--broker", redis_url, "--database", postgres_url, "--photos", str(photos),
        env=demo_environment(tmp_path), cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "3 pictures" in result.stdout
    assert "postgresql+psycopg://" in result.stdout


@pytest.mark.long
def test_the_demo_fails_in_one_line_when_its_model_cannot_load(tmp_path: Path) -> None:
    result = captioner(
        "demo", "--model", str(tmp_path / "nothing"), env=demo_environment(tmp_path), cwd=tmp_path
    )
    assert result.returncode == 1
    assert "the worker ended with code 1" in result.stderr
    assert str(tmp_path / "nothing") in result.stderr
    assert "Traceback" not in result.stderr

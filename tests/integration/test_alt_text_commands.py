"""Alt texts from the command line to SQL and back, as people and programs see them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distributions import install
from processes import captioner, environment, running_worker

MODEL = """
from captioner import hookimpl
from captioner.testing import FakeCaption, FakeCaptionModel

class Model(FakeCaptionModel):
    def generate(self, images, options):
        text = "there is a cat that is sitting on a couch"
        return [[FakeCaption(text, text, -1.0)] for _ in images]

@hookimpl
def provide_captioner(settings):
    return Model()
"""
CAPTION = "there is a cat that is sitting on a couch"
ALT_TEXT = "A cat that is sitting on a couch"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alt-text")
    (folder / "plugins").mkdir()
    install(folder / "plugins", "a_model", MODEL)
    (folder / "pictures").mkdir()
    for name in ("a.png", "pictures/b.png"):
        Image.new("RGB", (20, 10), (10, 20, 30)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def env(folder: Path) -> Iterator[dict[str, str]]:
    """Of the embedded service, with a worker that runs."""
    env = environment(folder) | {"PYTHONPATH": str(folder / "plugins")}
    with running_worker(folder, env):
        yield env


def submitted(env: dict[str, str], *arguments: str) -> list[dict[str, Any]]:
    """The jobs of `captioner submit`, when they have ended."""
    ran = captioner("submit", *arguments, "--wait", "--timeout", "60", "--json", env=env)
    assert ran.returncode == 0, ran.stderr
    jobs: list[dict[str, Any]] = json.loads(ran.stdout)
    return jobs


def test_submit_status_and_wait_show_it(env: dict[str, str], folder: Path) -> None:
    (job,) = submitted(env, str(folder / "a.png"))
    assert job["captions"][0]["text"] == CAPTION
    assert job["captions"][0]["alt_text"] == ALT_TEXT
    assert "alt_text" not in job["options"]
    for command in ("status", "wait"):
        shown = captioner(command, job["id"], env=env).stdout
        assert CAPTION in shown
        assert f"alt text: {ALT_TEXT}" in shown


def test_decorative_and_short(env: dict[str, str], folder: Path) -> None:
    (job,) = submitted(env, str(folder / "a.png"), "--decorative")
    assert (job["state"], job["captions"][0]["alt_text"]) == ("succeeded", "")
    assert job["captions"][0]["text"] == CAPTION
    assert job["options"]["alt_text"] == {"decorative": True}
    assert "alt text: empty, decorative" in captioner("status", job["id"], env=env).stdout
    (job,) = submitted(env, str(folder / "a.png"), "--max-alt-text", "14")
    assert job["captions"][0]["alt_text"] == "A cat that is"
    assert job["options"]["alt_text"] == {"max_characters": 14}


@pytest.mark.long
def test_files_of_items_and_folders(env: dict[str, str], folder: Path) -> None:
    picture = str(folder / "a.png")
    items = folder / "items.jsonl"
    asked: list[dict[str, Any]] = [
        {"source": picture},
        {"source": picture, "options": {"alt_text": {"max_characters": 5}}},
    ]
    items.write_text("".join(json.dumps(item) + "\n" for item in asked))
    made = submitted(env, "--from", str(items), "--decorative")
    assert [job["captions"][0]["alt_text"] for job in made] == ["", "A cat"]
    # The same pictures with another alt text are other jobs.
    (first,) = submitted(env, str(folder / "pictures"))
    (second,) = submitted(env, str(folder / "pictures"), "--max-alt-text", "5")
    assert [job["captions"][0]["alt_text"] for job in (first, second)] == [ALT_TEXT, "A cat"]
    assert submitted(env, str(folder / "pictures"))[0]["id"] == first["id"]


def test_captions_right_here(env: dict[str, str], folder: Path) -> None:
    shown = captioner("caption", str(folder / "a.png"), env=env)
    assert shown.stdout.splitlines() == [
        f"{folder / 'a.png'}: {CAPTION}",
        f"  alt text: {ALT_TEXT}",
    ]
    ran = captioner("caption", str(folder / "a.png"), "--json", "--decorative", env=env)
    (entry,) = json.loads(ran.stdout)
    assert (entry["caption"], entry["alt_text"]) == (CAPTION, "")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--max-alt-text", "0"], "--max-alt-text"),
        (["--max-alt-text", "1001"], "alt_text.max_characters must be from 1 to 1000, not 1001"),
        (["-o", 'alt_text={"decorative": true}'], "there are --decorative and --max-alt-text"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    env: dict[str, str], folder: Path, arguments: list[str], problem: str
) -> None:
    for command in ("submit", "caption"):
        ran = captioner(command, str(folder / "a.png"), *arguments, env=env)
        assert ran.returncode == 2
        (line,) = ran.stderr.splitlines()
        assert problem in line

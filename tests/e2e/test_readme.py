"""The README is true: its commands and its Python run, in an empty folder, as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from captioner.demo.films import random_film, write_film
from captioner.demo.scenes import draw, scenes
from processes import Worker, environment, running_worker

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WORKER = "captioner worker --model demo"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0] for line in lines if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README's reader has it: some pictures, a film, and nothing else."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "folder").mkdir()
    for number, scene in enumerate(scenes(3, 3)):
        name = "picture.png" if number == 0 else f"folder/{number}.png"
        draw(scene, 256).save(folder / name)
    write_film(random_film(3), folder / "film.mp4")
    return folder


@pytest.fixture(scope="module")
def env(folder: Path) -> dict[str, str]:
    """A newcomer's environment, but for a data folder of the test's own."""
    env = environment(folder)
    del env["CAPTIONER_MODEL__ID"], env["CAPTIONER_MEDIA__ALLOWED_ROOTS"]
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return env


@pytest.fixture(scope="module")
def worker(folder: Path, env: dict[str, str]) -> Iterator[Worker]:
    """The worker that the README starts in one terminal."""
    assert WORKER in commands()
    with running_worker(folder, env, *WORKER.split()) as worker:
        yield worker
        assert worker.stop() == 0


@pytest.mark.parametrize("command", [c for c in commands() if c != WORKER])
def test_commands_run(command: str, folder: Path, env: dict[str, str], worker: Worker) -> None:
    result = subprocess.run(
        ["bash", "-euc", command],
        cwd=ROOT if command.startswith("make ") else folder,
        env=env,
        text=True,
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}\n{worker.log}"


def test_python_runs(folder: Path, env: dict[str, str], worker: Worker) -> None:
    (code,) = blocks("python")
    # The only thing that is not there in a test is the site.
    code = code.replace("https://cms.example/media/cat.jpg", str(folder / "picture.png"))
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, text=True, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("succeeded a photography of ")

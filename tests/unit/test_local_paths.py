"""Paths that cannot be looked at are told in one line, and the rest goes on."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from captioner.cli import main
from captioner.demo.scenes import draw, scenes

LONG = "x" * 300
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in an empty folder: its exit code, and what it printed."""
    monkeypatch.setenv("CAPTIONER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("CAPTIONER_MODEL__ID", "demo")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        told = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, told.out, told.err

    return run


@pytest.fixture
def closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> str:  # run sets the folder
    """A folder that this user may not pass; these tests may run as root, whom nothing stops."""
    Path("closed").mkdir()
    monkeypatch.setattr(os, "stat", _refusing(os.stat, os.path.dirname))
    monkeypatch.setattr(os, "scandir", _refusing(os.scandir, os.path.abspath))
    monkeypatch.setattr(os, "access", lambda path, *_, **__: "closed" not in str(path))
    monkeypatch.setattr(io, "open", _refusing(open, os.path.dirname))
    return "closed"


def _refusing(asked: Callable[..., Any], folder_of: Callable[[Any], Any]) -> Callable[..., Any]:
    def ask(path: Any = ".", *arguments: Any, **options: Any) -> Any:
        if not isinstance(path, int) and "closed" in Path(folder_of(path)).parts:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return asked(path, *arguments, **options)

    return ask


def test_lines_whose_files_cannot_be_looked_at_are_refused_one_by_one(
    run: Run, closed: str
) -> None:
    sources = [LONG, f"{closed}/a.png", "~nouser/a.png", "https://h/a.jpg"]
    lines = [json.dumps({"source": source}) for source in sources]
    Path("items.jsonl").write_text("\n".join(lines))

    code, _, told = run("submit", "--from", "items.jsonl")

    assert code == 1
    assert told.splitlines() == [
        f"line 1: {LONG}: File name too long",
        "line 2: closed/a.png: Permission denied",
        "line 3: ~nouser/a.png: no such file",
        "1 submitted, 3 refused",
    ]


@pytest.mark.parametrize("command", ["submit", "caption"])
@pytest.mark.parametrize(
    ("name", "why"), [(LONG, "File name too long"), ("closed/a.png", "Permission denied")]
)
@pytest.mark.usefixtures("closed")
def test_what_cannot_be_looked_at_is_one_line(run: Run, command: str, name: str, why: str) -> None:
    assert run(command, name) == (2, "", f"captioner: {name}: {why}\n")


@pytest.mark.parametrize(
    ("name", "why"), [(LONG, "File name too long"), ("closed/items", "Permission denied")]
)
@pytest.mark.usefixtures("closed")
def test_items_that_cannot_be_read_are_one_line(run: Run, name: str, why: str) -> None:
    assert run("submit", "--from", name) == (2, "", f"captioner: {name}: {why}\n")


def test_a_file_that_begins_with_a_tilde_is_taken(run: Run) -> None:
    Path("~x.png").touch()

    code, out, _ = run("submit", "~x.png")

    assert (code, out.split()[-1]) == (0, str(Path("~x.png").absolute()))


def test_a_file_that_is_called_like_a_url_is_taken(run: Run) -> None:
    Path("scan:1.png").touch()

    code, out, _ = run("submit", "scan:1.png")

    assert (code, out.split()[-1]) == (0, str(Path("scan:1.png").absolute()))


def test_what_is_called_like_a_url_and_is_no_file_is_a_url(run: Run) -> None:
    code, out, _ = run("submit", "scan:1.png")

    assert (code, out.split()[-1]) == (0, "scan:1.png")


@pytest.mark.parametrize("name", ["../other/a.png", "../other", "link/../a.png", "link/.."])
def test_the_way_to_a_file_may_lead_upwards(run: Run, name: str) -> None:
    Path("../other/deep").mkdir(parents=True)
    Path("link").symlink_to("../other/deep")  # so that link/.. is other
    draw(next(iter(scenes(3, 1))), 64).save("../other/a.png")
    picture = Path("../other").resolve() / "a.png"

    assert run("submit", name)[0] == 0
    _, out, _ = run("list", "--json")
    assert [job["source"] for job in json.loads(out)["jobs"]] == [str(picture)]
    code, out, told = run("caption", name)
    assert (code, told) == (0, ""), told
    assert out.startswith(str(Path(name, "a.png") if Path(name).is_dir() else name))


def test_a_closed_folder_is_told_and_the_others_are_submitted(run: Run, closed: str) -> None:
    Path("a.png").touch()

    code, _, told = run("submit", ".")

    assert code == 1
    assert told.splitlines() == [
        f"{Path(closed).absolute()}: Permission denied",
        "1 submitted, 1 refused",
    ]
    assert run("submit", closed)[0] == 1


def test_a_closed_folder_is_told_and_the_others_are_captioned(run: Run, closed: str) -> None:
    draw(next(iter(scenes(3, 1))), 64).save("a.png")

    code, out, told = run("caption", ".")

    assert (code, out.partition(":")[0]) == (1, "a.png")
    assert told.splitlines() == [
        f"{closed}: invalid_request: Permission denied",
        "1 of 2 failed",
    ]
    code, out, told = run("caption", closed, "a.png")
    assert (code, out.partition(":")[0]) == (1, "a.png")
    assert told.startswith(f"{closed}: invalid_request: Permission denied\n")


@pytest.mark.parametrize("command", ["submit", "caption"])
def test_a_folder_without_pictures_is_a_mistake(run: Run, command: str) -> None:
    Path("full").mkdir()
    Path("full", "a.png").touch()
    Path("empty", "x.png").mkdir(parents=True)

    code, out, told = run(command, "full", "empty")

    assert (code, out, told) == (2, "", "captioner: empty holds no pictures\n")


def test_pictures_of_a_folder_are_told_by_every_suffix_that_programs_write(run: Run) -> None:
    names = ["a.jpg", "b.JPEG", "c.jpe", "d.jfif", "e.tif", "f.TIFF", "g.webp"]
    for name in [*names, "notes.txt", "film.mp4"]:
        Path(name).touch()

    assert run("submit", ".")[2].splitlines()[-1] == f"{len(names)} submitted"


def test_odd_names_fail_alone(run: Run) -> None:
    picture = draw(next(iter(scenes(3, 1))), 64)
    odd = [b"a\xff.png", b"b\t.png", b"c\n.png", b"d\x1b.png"]
    for name in [*map(os.fsdecode, odd), "e.png"]:
        with Path(name).open("wb") as file:
            picture.save(file, "PNG")
    Path("x.png").mkdir()

    code, out, told = run("caption", ".", "--json")

    assert code == 1
    assert [line.partition(":")[0] for line in told.splitlines()] == ["4 of 5 failed"]
    found = json.loads(out)
    assert [os.fsencode(one["file"]) for one in found] == [*odd, b"e.png"]
    assert ["error" in one for one in found] == [True] * 4 + [False]
    code, out, told = run("caption", ".")
    assert (code, out.partition(":")[0]) == (1, "e.png")
    assert [line.partition(":")[0] for line in told.splitlines()] == [
        "a\\udcff.png", "b\\t.png", "c\\n.png", "d\\x1b.png", "4 of 5 failed",
    ]  # fmt: skip


def test_a_sidecar_that_cannot_be_written_fails_its_picture_alone(run: Run) -> None:
    for name in ("a.png", "b.png"):
        draw(next(iter(scenes(3, 1))), 64).save(name)
    Path("a.txt").write_text("notes")

    code, out, told = run("caption", ".", "--sidecar")

    assert code == 1
    assert [line.partition(":")[0] for line in out.splitlines() if ".png" in line] == [
        "a.png",
        "b.png",
    ]
    assert told.splitlines() == [
        "a.txt is there already; to replace it add --overwrite",
        "1 of 2 failed",
    ]
    assert Path("a.txt").read_text() == "notes"
    assert Path("b.txt").exists()

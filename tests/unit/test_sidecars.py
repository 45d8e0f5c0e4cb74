"""No caption and no file of the user's is lost for another."""

from __future__ import annotations

from pathlib import Path

import pytest

from captioner.cli.sidecars import Sidecars
from captioner.domain import Caption
from captioner.errors import CaptionerError


def caption(text: str) -> list[Caption]:
    return [Caption(text=text, continuation=text, score=0.0, rank=0)]


def written(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_pictures_of_one_name_have_a_sidecar_each(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.png", "a.jpg", "b.png")]
    sidecars = Sidecars([*files, files[-1]], overwrite=False)

    for file in files:
        sidecars.write(file, caption(file.suffix))

    assert written(tmp_path) == {"a.png.txt": ".png\n", "a.jpg.txt": ".jpg\n", "b.txt": ".png\n"}


def test_what_is_there_is_kept_unless_it_may_be_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    (tmp_path / "a.txt").write_text("notes\n")

    with pytest.raises(CaptionerError, match=r"a\.txt is there already; .* --overwrite"):
        Sidecars([file], overwrite=False).write(file, caption("a cat"))
    assert written(tmp_path) == {"a.txt": "notes\n"}

    Sidecars([file], overwrite=True).write(file, caption("a cat"))
    Sidecars([file], overwrite=False).write(file, caption("a cat"))  # nothing to replace
    assert written(tmp_path) == {"a.txt": "a cat\n"}


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    (tmp_path / "a.txt").mkdir()

    with pytest.raises(CaptionerError, match=r"a\.txt: Is a directory$"):
        Sidecars([file], overwrite=True).write(file, caption("a cat"))

"""Output that nobody takes, input that nobody gives, and Ctrl-C before anything has begun."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from captioner.cli import main
from processes import environment

COMMAND = f"{shlex.quote(sys.executable)} -m captioner"


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        ("{} plugins >/dev/full", 1, "the output cannot be written: No space left on device"),
        ("{} plugins --json >/dev/full", 1, "the output cannot be written: No space left"),
        ("{} nonsense >/dev/full", 2, "No such command"),
        ("({} plugins; echo $? >&2) | true", 0, "141"),
        ("({} plugins --json; echo $? >&2) | true", 0, "141"),
        ("({} --help; echo $? >&2) | true", 0, "141"),
        ("{} submit --from - <&-", 2, "--from -: standard input is closed"),
        ("{} nonsense >&-", 2, "No such command"),
        ("{} nonsense 2>&-", 2, ""),
        ("{} plugins >&-", 0, ""),
    ],
)
def test_what_becomes_of_broken_streams(tmp_path: Path, line: str, code: int, told: str) -> None:
    result = subprocess.run(
        ["bash", "-c", line.replace("{}", COMMAND)],
        env=environment(tmp_path),
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == code, result.stderr
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == bool(told), result.stderr


def test_a_file_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(**_: object) -> None:
        Path("/nowhere/sheet.jpg").write_bytes(b"")

    monkeypatch.setattr(sys.modules["captioner.cli.main"], "app", write)
    with pytest.raises(SystemExit) as ended:
        main(["status"])
    told = capsys.readouterr().err
    assert ended.value.code == 1
    assert told == "captioner: /nowhere/sheet.jpg: No such file or directory\n"


def test_an_interrupt_while_it_is_imported_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    result = subprocess.run(
        [sys.executable, "-m", "captioner", "list"],
        env=environment(tmp_path) | {"PYTHONPATH": str(tmp_path)},
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")

"""What every command says of itself: whole, and of everything it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from captioner.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [path for path in ROOT.rglob("*.md") if ".venv" not in path.parts]


def commands(command: Any, path: str = "captioner") -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, one in getattr(command, "commands", {}).items():
        yield from commands(one, f"{path} {name}")


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", COMMANDS)
def test_every_argument_and_option_is_explained(path: str) -> None:
    parameters = [one for one in COMMANDS[path].params if one.name != "help"]
    assert [one.name for one in parameters if not getattr(one, "help", None)] == []


@pytest.mark.parametrize(
    "path", [path for path, one in COMMANDS.items() if hasattr(one, "commands")]
)
def test_lists_of_commands_cut_nothing_off(path: str) -> None:
    told = CliRunner().invoke(app, [*path.split()[1:], "--help"]).output
    for line in told.partition("Commands:\n")[2].partition("\n\n")[0].splitlines():
        assert not line.endswith("..."), line
        assert re.fullmatch(r"  [a-z-]+ +[A-Z].*\.", line), line


def mentioned() -> Iterator[str]:
    """Commands in the pages: lines of their code, and code within their sentences."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for line in re.findall(r"^(?:    )?(captioner [a-z].*)$", text, re.MULTILINE):
            yield line.partition(" #")[0].strip()
        yield from re.findall(r"`(captioner [a-z][^`]*)`", text.replace("\n", " "))


@pytest.mark.parametrize("line", sorted(set(mentioned())))
def test_every_command_in_the_pages_exists(line: str) -> None:
    words = line.split()
    path = "captioner"
    while words[1:] and f"{path} {words[1]}" in COMMANDS:
        path += f" {words.pop(1)}"
    assert path != "captioner", line
    known = {option for one in COMMANDS[path].params for option in one.opts}
    assert {
        word.partition("=")[0] for word in words if word.startswith("-") and word != "-"
    } <= known

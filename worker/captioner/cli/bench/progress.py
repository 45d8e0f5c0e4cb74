"""What measurements tell while they run, and where their numbers go."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from captioner.cli.local_paths import writable
from captioner.cli.output import progress_bar, remarks

JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        dir_okay=False,
        callback=writable,
        help="Write the numbers here, too.",
    ),
]


@contextmanager
def written(report: dict[str, Any], path: Path | None) -> Iterator[None]:
    """Write the numbers as JSON where that was asked for, after what is done here to show them.

    They took minutes: a full disk is not to cost those on the screen, nor the other way round.
    """
    try:
        yield
    finally:
        if path is not None:
            path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


@contextmanager
def telling(steps: int) -> Iterator[Callable[[str], None]]:
    """Show what is going on: a bar on a terminal, elsewhere a line whenever that changes."""
    with progress_bar() as progress:
        task = progress.add_task("", total=steps)
        begun: list[str] = []

        def say(what: str) -> None:
            if not remarks.is_terminal and what not in begun[-1:]:
                remarks.print(what)
            # What begins now ends what was before.
            progress.update(task, description=what, advance=1 if begun else 0)
            begun.append(what)

        yield say


def mib(size_bytes: int) -> str:
    """For people."""
    return f"{size_bytes / 2**20:,.1f} MiB"

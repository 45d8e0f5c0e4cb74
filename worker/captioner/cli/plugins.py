"""`plugins`: what is installed, and what became of it."""

from __future__ import annotations

import dataclasses

from rich.markup import escape
from rich.table import Table

from captioner.cli.environment import Json, settings_from
from captioner.cli.output import console, print_json
from captioner.plugins import load_plugins


def plugins(*, as_json: Json = False) -> None:
    """List plugins: name, version, hooks, state and error."""
    infos = load_plugins(settings_from().plugins).infos()
    if as_json:
        print_json([dataclasses.asdict(info) for info in infos])
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "distribution", "version", "state", "hooks", "error"):
        table.add_column(column)
    for info in infos:
        colour = {"enabled": "green", "disabled": "dim", "failed": "red"}[info.state]
        table.add_row(
            escape(info.name),
            escape(info.distribution),
            info.version,
            f"[{colour}]{info.state}[/]",
            ", ".join(info.hooks),
            escape(info.error or ""),
        )
    console.print(table)

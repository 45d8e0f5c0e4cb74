"""`plugins`: what is installed, what became of it, and what it did wrong since."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence

from rich.table import Table

from captioner.cli.environment import Database, Json, settings_from
from captioner.cli.output import console, plain, print_json, remarks
from captioner.errors import CaptionerError
from captioner.plugin_errors import PluginErrorCount
from captioner.plugins import PluginInfo, load_plugins
from captioner.settings import Settings
from captioner.store import open_store

Errors = Mapping[str, Sequence[PluginErrorCount]]
STYLES = {"enabled": "green", "disabled": "dim", "failed": "red", "absent": "yellow"}


def plugins(*, as_json: Json = False, database: Database = None) -> None:
    """List plugins.

    Each with its version, its hooks, whether it runs, and the errors that workers counted.
    """
    settings = settings_from(database__url=database)
    errors = _errors(settings)
    infos = load_plugins(settings.plugins).infos()
    known = {info.name for info in infos}
    infos += [PluginInfo(name, "", "", "absent") for name in sorted((errors or {}).keys() - known)]
    if as_json:
        print_json([_entry(info, errors) for info in infos])
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "distribution", "version", "state", "hooks"):
        table.add_column(column)
    table.add_column("errors", overflow="fold")
    for info in infos:
        lines = [info.error] if info.error else []
        lines += [_line(count) for count in (errors or {}).get(info.name, ())]
        table.add_row(
            plain(info.name),
            plain(info.distribution),
            info.version,
            f"[{STYLES[info.state]}]{info.state}[/]",
            ", ".join(info.hooks),
            "\n".join(map(plain, lines)),
        )
    console.print(table)


def _errors(settings: Settings) -> Errors | None:
    """What was counted, by plugin; None, and a remark, when there is no database to ask."""
    if settings.embedded_database and not settings.embedded_database_path.exists():
        return None  # nothing has run yet, and to look is no reason to create it
    found = defaultdict(list)
    try:
        with open_store(settings) as store:
            for count in store.plugin_errors():
                found[count.plugin].append(count)
    except CaptionerError as error:
        remarks.print(f"[yellow]errors are not known[/]: {plain(str(error))}", soft_wrap=True)
        return None
    return found


def _entry(info: PluginInfo, errors: Errors | None) -> dict[str, object]:
    counted = None
    if errors is not None:
        counted = [
            {
                "hook": count.hook,
                "errors": count.errors,
                "last_error": count.last_error,
                "last_at": count.last_at.isoformat(),
            }
            for count in errors.get(info.name, ())
        ]
    return dataclasses.asdict(info) | {"errors": counted}


def _line(count: PluginErrorCount) -> str:
    times = "once" if count.errors == 1 else f"{count.errors} times"
    at = f"{count.last_at:%Y-%m-%d %H:%M:%S} UTC"
    return f"{count.hook}: {times}, last at {at}: {count.last_error}"

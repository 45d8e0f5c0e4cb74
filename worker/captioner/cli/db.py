"""`db`: the database schema."""

from __future__ import annotations

import typer

from captioner.cli.environment import Database, Json, settings_from
from captioner.cli.output import print_json
from captioner.store import schema_status, upgrade_schema

app = typer.Typer(
    help="Upgrade the database schema, or show where it is.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("upgrade")
def upgrade(database: Database = None) -> None:
    """Bring the schema to this version.

    Does nothing where it is there already.
    """
    before, after = upgrade_schema(settings_from(database__url=database))
    if before.current == after.current:
        typer.echo(f"{after.database}: is up to date (revision {after.current})")
    else:
        typer.echo(
            f"{after.database}: upgraded from {before.current or 'nothing'} "
            f"to revision {after.current}"
        )


@app.command("current")
def current(*, as_json: Json = False, database: Database = None) -> None:
    """Show the schema's revision.

    Exit 1 when it is not the one this version needs.
    """
    status = schema_status(settings_from(database__url=database))
    if as_json:
        print_json({"current": status.current, "needed": status.needed})
    elif status.current == status.needed:
        typer.echo(f"{status.database}: is up to date (revision {status.current})")
    else:
        typer.echo(
            f"{status.database}: is at revision {status.current or 'none'}, "
            f"needed {status.needed}; run: captioner db upgrade"
        )
    if status.current != status.needed:
        raise typer.Exit(1)

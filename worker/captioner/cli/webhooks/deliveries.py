"""`webhooks test`, `deliveries` and `redeliver`."""

from __future__ import annotations

from typing import Annotated

import typer

from captioner.cli import events
from captioner.cli.environment import Broker, Database, Json
from captioner.cli.output import print_json, remarks
from captioner.cli.webhooks.naming import Registered, endpoint_id_of, opened, target_of
from captioner.errors import DeliveryError
from captioner.events import DeliveryState
from captioner.redaction import printable, printable_lines
from captioner.webhooks.endpoints import PLUGIN


def send_test_event(
    endpoint: Registered, *, as_json: Json = False, database: Database = None
) -> None:
    """Post one webhook of the type webhook.test from here.

    Exit 1 unless the answer is 2xx.
    """
    from captioner.webhooks.trial import send_test

    error = None
    with opened(database) as (store, settings):
        try:
            answer = send_test(store, settings, endpoint_id_of(endpoint))
            status, excerpt = answer.status, answer.excerpt
        except DeliveryError as failure:
            status, excerpt, error = failure.status, failure.excerpt, str(failure)
    if as_json:
        print_json({"status": status, "excerpt": excerpt, "error": error})
    else:
        typer.echo(printable(error or f"answered with HTTP status {status}"))
        if excerpt:
            typer.echo(printable_lines(excerpt))
    if error:
        raise typer.Exit(1)


def deliveries(
    endpoint: Annotated[
        str | None, typer.Argument(metavar="ID", help="Only this receiver's.", show_default=False)
    ] = None,
    state: Annotated[
        DeliveryState | None, typer.Option("--state", help="Only those in this state.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many at most.")] = 20,
    *,
    as_json: Json = False,
    database: Database = None,
) -> None:
    """List deliveries, newest first."""
    target = target_of(endpoint) if endpoint else None
    with opened(database) as (store, _):
        if endpoint:
            store.endpoint(endpoint_id_of(endpoint))
        found = store.list_deliveries(state, plugin=PLUGIN, target=target, limit=limit)
    if as_json:
        print_json([one.as_mapping() for one in found])
    elif found:
        events.print_deliveries(found)
    else:
        remarks.print("no deliveries", style="dim")


def redeliver(
    ids: Annotated[
        list[int] | None,
        typer.Argument(metavar="DELIVERY", help="Id of a delivery.", show_default=False),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="ID", help="With --dead: only this receiver's."),
    ] = None,
    *,
    dead: Annotated[bool, typer.Option("--dead", help="All that were given up.")] = False,
    as_json: Json = False,
    database: Database = None,
    broker: Broker = None,
) -> None:
    """Make deliveries again, by the whole schedule.

    They have the webhook-id they had. Exit 1 if one is unknown, or just being tried.
    """
    if bool(ids) == dead or (endpoint and not dead):
        raise typer.BadParameter("give the ids of deliveries, or --dead, which may have --endpoint")
    events.redeliver(
        ids,
        dead=dead,
        plugin=PLUGIN if dead else None,
        target=target_of(endpoint) if endpoint else None,
        as_json=as_json,
        database=database,
        broker=broker,
    )

"""`webhooks list`, `enable`, `disable` and `remove`."""

from __future__ import annotations

import typer
from rich.table import Table

from captioner.cli.environment import Database, Json
from captioner.cli.output import console, plain, print_json, remarks
from captioner.cli.webhooks.naming import (
    JOBS,
    Endpoint,
    Registered,
    endpoint_id_of,
    mapping_of,
    name_of,
    opened,
)
from captioner.domain import EndpointState
from captioner.errors import InvalidRequestError
from captioner.webhooks.endpoints import jobs_endpoint


def list_endpoints(*, as_json: Json = False, database: Database = None) -> None:
    """List receivers.

    Each with its state, the events it wants, and why it is disabled.
    """
    with opened(database) as (store, _):
        endpoints = store.endpoints()
    if as_json:
        print_json([mapping_of(one) for one in endpoints])
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("id", no_wrap=True, min_width=36)
    for column in ("state", "url", "events", "description", "remark"):
        table.add_column(column, overflow="fold")
    for one in endpoints:
        colour = "green" if one.state is EndpointState.ENABLED else "red"
        since = f"failing since {one.failing_since:%Y-%m-%d %H:%M} UTC" if one.failing_since else ""
        table.add_row(
            name_of(one.id),
            f"[{colour}]{one.state}[/]",
            plain(one.url_display),
            ", ".join(one.event_types) or "all",
            plain(one.description),
            plain(one.disabled_reason or since),
        )
    if endpoints:
        console.print(table)
    else:
        remarks.print("no receivers yet; add one: captioner webhooks add https://…", style="dim")


def enable(endpoint: Endpoint, database: Database = None) -> None:
    """Send webhooks to a receiver again, from the next event on."""
    with opened(database) as (store, _):
        store.enable_endpoint(endpoint_id_of(endpoint))
    typer.echo(f"{endpoint}: enabled; for what was missed: captioner webhooks redeliver --dead")


def disable(endpoint: Endpoint, database: Database = None) -> None:
    """Send no more webhooks to a receiver.

    What is on its way is given up.
    """
    with opened(database) as (store, settings):
        if endpoint == JOBS:
            jobs_endpoint(store, settings)
        store.disable_endpoint(endpoint_id_of(endpoint), "by hand")
    typer.echo(f"{endpoint}: disabled")


def remove(endpoint: Registered, database: Database = None) -> None:
    """Forget a receiver and its secret."""
    if endpoint == JOBS:
        raise InvalidRequestError("disable this one: every job may name a webhook_url")
    with opened(database) as (store, _):
        store.remove_endpoint(endpoint_id_of(endpoint))
    typer.echo(f"{endpoint}: removed")

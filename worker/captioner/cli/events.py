"""`events`: what is on its way to plugins and webhooks, what got there, and what did not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from captioner.cli.environment import Broker, Database, Json, settings_from
from captioner.cli.output import console, plain, plain_lines, print_json, remarks
from captioner.deliveries import Attempt, Delivery
from captioner.errors import DeliveryNotFoundError, EventNotFoundError, InvalidRequestError
from captioner.events import DeliveryState
from captioner.plugins import load_plugins
from captioner.settings import Settings
from captioner.store import Store, open_store

#: Ids are from 1 to this; no database can be asked for others.
MAX_ID = 2**63 - 1
#: Of `redeliver --dead`, in one transaction.
REDELIVER_BATCH = 500
STYLES = {
    DeliveryState.PENDING: "cyan",
    DeliveryState.DELIVERED: "green",
    DeliveryState.DEAD: "red",
}

app = typer.Typer(
    help="See what plugins and webhooks were told, and tell it again.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _text(value: str | None) -> str | None:
    """What a database can be asked for, which bytes that are no text are not."""
    try:
        _ = (value or "").encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("it must be text in UTF-8") from None
    return value


Plugin = Annotated[
    str | None, typer.Option("--plugin", callback=_text, help="Only those of this plugin.")
]
Target = Annotated[
    str | None, typer.Option("--target", callback=_text, help="Only those to this target.")
]


@contextmanager
def _opened(database: str | None, broker: str | None = None) -> Iterator[tuple[Store, Settings]]:
    settings = settings_from(database__url=database, broker__url=broker)
    with open_store(settings) as store:
        yield store, settings


@app.command("list")
def list_deliveries(
    state: Annotated[
        DeliveryState | None, typer.Option("--state", help="Only deliveries in this state.")
    ] = None,
    plugin: Plugin = None,
    target: Target = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many at most.")] = 20,
    before: Annotated[
        int | None,
        typer.Option(
            "--before",
            metavar="ID",
            min=0,
            max=MAX_ID,
            clamp=True,
            help="Only those before this one.",
        ),
    ] = None,
    *,
    as_json: Json = False,
    database: Database = None,
) -> None:
    """List deliveries, newest first, and how many there are."""
    with _opened(database) as (store, _):
        found = store.list_deliveries(
            state, plugin=plugin, target=target, limit=limit, before=before
        )
        counts = store.count_deliveries()
    if as_json:
        print_json(
            {
                "deliveries": [delivery.as_mapping() for delivery in found],
                "counts": {name.value: counts[name] for name in DeliveryState},
            }
        )
        return
    if found:
        print_deliveries(found)
    total = ", ".join(f"{counts[name]} {name}" for name in DeliveryState if counts[name])
    remarks.print(total or "no deliveries yet", style="dim")


@app.command("show")
def show(
    delivery_id: Annotated[int, typer.Argument(metavar="ID", help="Id of a delivery.")],
    *,
    as_json: Json = False,
    database: Database = None,
) -> None:
    """Show a delivery and each of its attempts."""
    if not _may_be(delivery_id):
        raise DeliveryNotFoundError(delivery_id)
    with _opened(database) as (store, _):
        delivery, attempts = store.get_delivery(delivery_id)
    if as_json:
        shown = delivery.as_mapping()
        print_json(shown | {"log": [attempt.as_mapping() for attempt in attempts]})
        return
    _print_delivery(delivery, attempts)


@app.command("redeliver")
def redeliver(
    ids: Annotated[
        list[int] | None, typer.Argument(metavar="ID", help="Id of a delivery.", show_default=False)
    ] = None,
    event: Annotated[
        list[int] | None,
        typer.Option(
            "--event",
            metavar="EVENT_ID",
            help="All deliveries of this event, and plugins are asked for its targets again; "
            "may be repeated.",
        ),
    ] = None,
    *,
    dead: Annotated[bool, typer.Option("--dead", help="All that were given up.")] = False,
    plugin: Plugin = None,
    target: Target = None,
    as_json: Json = False,
    database: Database = None,
    broker: Broker = None,
) -> None:
    """Make deliveries again, by the whole schedule.

    What was delivered before is delivered once more, under the same event id. Exit 1 if one is
    unknown, or just being tried.
    """
    if sum(map(bool, (ids, event, dead))) != 1:
        raise typer.BadParameter("give either ids, or --event, or --dead")
    if (plugin or target) and not dead:
        raise InvalidRequestError("--plugin and --target choose among the dead: add --dead")
    with _opened(database, broker) as (store, settings):
        if plugin:
            _check_plugin(store, settings, plugin)
        if dead:
            again = _redeliver_dead(store, plugin, target)
        elif event:
            again = {one for event_id in event for one in _redeliver_event(store, event_id)}
        else:
            again = store.redeliver(list(filter(_may_be, ids or ())))
        _look_now(settings)
    left = sorted(set(ids or ()) - again)
    if as_json:
        print_json({"redelivered": sorted(again), "left": left})
    else:
        typer.echo(f"{len(again)} deliveries are made again")
        for one in left:
            remarks.print(f"[yellow]{one}[/]: unknown, or being tried just now")
    if left:
        raise typer.Exit(1)


def _may_be(number: int) -> bool:
    return 0 < number <= MAX_ID


def _check_plugin(store: Store, settings: Settings, name: str) -> None:
    """Refuse what is a typing error: the name of no plugin that is here or ever had a delivery."""
    if store.list_deliveries(plugin=name, limit=1):
        return
    known = [info.name for info in load_plugins(settings.plugins).infos()]
    if name not in known:
        raise InvalidRequestError(
            f"--plugin {name!r}: no plugin has this name; there are {', '.join(known)}"
        )


def _redeliver_event(store: Store, event_id: int) -> set[int]:
    if not _may_be(event_id):
        raise EventNotFoundError(event_id)
    return store.redeliver_event(event_id)


def _redeliver_dead(store: Store, plugin: str | None, target: str | None) -> set[int]:
    again: set[int] = set()
    while found := store.redeliver_dead(REDELIVER_BATCH, plugin=plugin, target=target):
        if found <= again:  # they die as fast as they are made again
            break
        again |= found
    return again


def _look_now(settings: Settings) -> None:
    """Tell a worker, if one listens; it would find out by itself."""
    from captioner.celery import create_app, publish_look  # Celery: only where it is used

    app = create_app(settings)
    try:
        publish_look(app)
    finally:
        app.close()


def print_deliveries(deliveries: Sequence[Delivery]) -> None:
    """A table, a row a delivery."""
    table = Table(box=None, pad_edge=False)
    table.add_column("id", no_wrap=True, justify="right")
    table.add_column("state", no_wrap=True)
    table.add_column("tried", no_wrap=True, justify="right")
    table.add_column("event", no_wrap=True)
    table.add_column("job", no_wrap=True, min_width=36)
    table.add_column("to", overflow="fold")
    table.add_column("", overflow="fold", min_width=12)
    for delivery in deliveries:
        table.add_row(
            str(delivery.id),
            f"[{STYLES[delivery.state]}]{delivery.state}[/]",
            str(delivery.attempts),
            f"{delivery.event.id} {delivery.event.type}",
            str(delivery.event.job_id),
            _to(delivery),
            _problem(delivery),
        )
    console.print(table)


def _print_delivery(delivery: Delivery, attempts: Sequence[Attempt]) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_row("delivery", str(delivery.id))
    grid.add_row("state", f"[{STYLES[delivery.state]}]{delivery.state}[/]")
    grid.add_row("event", f"{delivery.event.id} {delivery.event.type}")
    grid.add_row("job", str(delivery.event.job_id))
    grid.add_row("to", _to(delivery))
    if delivery.state is DeliveryState.PENDING:
        grid.add_row("next attempt", _when(delivery.due_at))
    for attempt in attempts:
        outcome = f"[red]{plain(attempt.error)}[/]" if attempt.error else "[green]delivered[/]"
        status = f"  status {attempt.status}" if attempt.status is not None else ""
        grid.add_row(
            f"attempt {attempt.number}",
            f"{_when(attempt.started_at)}  {attempt.duration_seconds:.3f} s{status}  {outcome}",
        )
        if attempt.excerpt:
            grid.add_row("", f"[dim]{plain_lines(attempt.excerpt)}[/]")
    if not attempts and delivery.last_error:
        grid.add_row("", f"[yellow]{plain(delivery.last_error)}[/]")
    console.print(grid)


def _to(delivery: Delivery) -> str:
    target = "its targets are asked for" if delivery.target is None else delivery.target
    return plain(f"{delivery.plugin}: {target}")


def _problem(delivery: Delivery) -> str:
    error = f"[red]{plain(delivery.last_error)}[/]" if delivery.last_error else ""
    if delivery.state is not DeliveryState.PENDING:
        return error
    seconds = (delivery.due_at - datetime.now(UTC)).total_seconds()
    return f"{error} [dim]again in {seconds:.0f} s[/]" if error and seconds > 0 else error


def _when(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"

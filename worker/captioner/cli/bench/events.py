"""`bench events`: events on their way to their targets, some of which are dead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from captioner.cli.bench.progress import JsonFile, telling, written
from captioner.cli.environment import Database, settings_from
from captioner.cli.output import console
from captioner.errors import InvalidRequestError
from captioner.logs import configure_logging

if TYPE_CHECKING:
    from captioner.bench.events import EventPlan


def events(
    database: Database = None,
    count: Annotated[int, typer.Option("--events", min=1, help="How many events.")] = 10_000,
    targets: Annotated[int, typer.Option("--targets", min=1, help="Targets of each event.")] = 5,
    dead: Annotated[
        int, typer.Option("--dead", min=0, help="How many of the targets never answer.")
    ] = 1,
    answer_seconds: Annotated[
        float, typer.Option("--answer-seconds", min=0, help="How long the others take to answer.")
    ] = 0.001,
    json_file: JsonFile = None,
) -> None:
    """Measure events on their way, beside dead targets.

    Targets are a plugin's in this process, so that the dispatcher alone is measured. Each time the
    tables are made anew: in a database of its own where a PostgreSQL is named, else in a file.
    """
    if dead >= targets:
        raise InvalidRequestError("--dead must be less than --targets: the others are measured")
    settings = settings_from(database__url=database)
    configure_logging(settings.log.model_copy(update={"level": "CRITICAL"}))
    from captioner.bench.events import EventPlan, measure_events

    plan = EventPlan(count, targets, dead, answer_seconds)
    with telling(6) as say:
        report = measure_events(settings, plan, say)
    with written(report, json_file):
        _print(report, plan)


def _print(report: dict[str, Any], plan: EventPlan) -> None:
    hardware = report["hardware"]
    console.print(
        f"{escape(hardware['cpu'])}, {hardware['cores']} cores, load {hardware['load_average']}; "
        f"{report['database']}; {plan.events:,} events for {plan.targets} targets",
        soft_wrap=True,
    )
    runs = (
        (f"{plan.targets - plan.dead} alone", "alone"),
        (f"all {plan.targets} answer", "all_well"),
        (f"{plan.dead} never do", "some_dead"),
    )
    for label, name in runs:
        console.print(
            f"{label:<14}{report[f'{name}_events_per_second']:>8,.0f} events a second to each that "
            f"does; CPU ms a delivery {report[f'{name}_cpu_milliseconds_per_delivery']:.2f}",
            soft_wrap=True,
        )
    console.print(
        f"beside the dead the others are served at [bold]{report['ratio']:.2f}[/] times the speed "
        f"beside as many that answer, and at {report['ratio_alone']:.2f} times that alone",
        soft_wrap=True,
    )

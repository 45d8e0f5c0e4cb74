"""`bench queue`: the path of a job through Redis, worker and PostgreSQL beside a bare task."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from captioner.cli.bench.progress import JsonFile, mib, telling, written
from captioner.cli.environment import Broker, Database, settings_from
from captioner.cli.output import console
from captioner.logs import configure_logging


def queue(
    broker: Broker = None,
    database: Database = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Jobs of each side in each round.")
    ] = 5000,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Each side has its turn in each; medians count.")
    ] = 5,
    finished: Annotated[
        int, typer.Option("--finished", min=0, help="Ended jobs in the tables beforehand.")
    ] = 0,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="ID", help="A real model instead of one that answers at once."
        ),
    ] = None,
    json_file: JsonFile = None,
    *,
    decode: Annotated[
        bool, typer.Option("--decode", help="Jobs are JPEGs of 640×480, not ready-made frames.")
    ] = False,
) -> None:
    """Measure jobs through queue, worker and database.

    Beside tasks of stock Celery that do nothing. It needs a Redis and a PostgreSQL, and touches
    nothing in them: it creates a database of its own and uses Redis keys of its own, and removes
    both. The queue is filled beforehand, on either side; the clock runs from the first job's claim
    to the last one's record, or from the first task to the last.
    """
    settings = settings_from(broker__url=broker, database__url=database)
    configure_logging(settings.log.model_copy(update={"level": "ERROR"}))
    # Here, because Celery takes its time, and other commands do without.
    from captioner.bench.place import require_servers
    from captioner.bench.plan import Plan
    from captioner.bench.queue import measure

    require_servers(settings)
    plan = Plan(
        jobs=jobs,
        rounds=rounds,
        # A real model wants real pictures.
        decode=decode or model is not None,
        finished=finished,
        model_id=model,
    )
    with telling(plan.steps) as say:
        report = {"at": datetime.now(UTC).isoformat(timespec="seconds")}
        report |= measure(settings, plan, say)
    with written(report, json_file):
        _print(report)


def _print(report: dict[str, Any]) -> None:
    hardware, versions = report["hardware"], report["versions"]
    console.print(
        f"{escape(hardware['cpu'])}, {hardware['cores']} cores, load {hardware['load_average']}; "
        f"Redis {versions['redis']}, PostgreSQL {versions['postgresql']}, "
        f"Celery {versions['celery']}; {report['concurrency']} threads",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("side")
    for title in ("per second", "times a no-op", "CPU ms each"):
        table.add_column(title, justify="right", no_wrap=True)
    for side, rate, ratio in (
        ("no-op task", "noop_tasks_per_second", None),
        ("one job a message", "single_jobs_per_second", "single_ratio"),
        ("32 jobs a message", "chunked_jobs_per_second", "chunked_ratio"),
    ):
        cpu = report["cpu_milliseconds_per_job"][rate.partition("_")[0]]
        table.add_row(
            side,
            _figure(report[rate], ",.0f"),
            f"[bold]{_figure(report[ratio], '.2f')}[/]" if ratio else "1",
            f"{cpu:.2f}",
        )
    console.print(table)
    memory = report["memory"]
    console.print(
        f"batches {report['batch_fill']:.0%} full, engine busy {report['engine_share']:.0%} of the "
        f"time; the worker's memory grew by {mib(memory['resident_bytes_growth'])} to "
        f"{mib(memory['resident_bytes_late'])} over {memory['jobs']:,} jobs",
        soft_wrap=True,
    )


def _figure(value: float, form: str) -> str:
    """In this form, and where that would say nothing, as of a real model: two digits."""
    return format(value, form if value >= 1 else "#.2g")

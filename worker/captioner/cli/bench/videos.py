"""`bench videos`: what sampling costs, and whether videos fill batches together."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from captioner.cli.bench.model import RandomWeights, model_of
from captioner.cli.bench.progress import JsonFile, telling, written
from captioner.cli.environment import Broker, Database, Model, settings_from
from captioner.cli.output import console
from captioner.errors import InvalidRequestError
from captioner.logs import configure_logging
from captioner.options.video import MAX_FRAMES
from captioner.suffixes import VIDEO_SUFFIXES


def videos(
    context: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", exists=True, file_okay=False, help="Folder of videos."),
    ],
    model_id: Model = None,
    frames: Annotated[
        int, typer.Option("--frames", min=1, max=MAX_FRAMES, help="Frames of each video.")
    ] = 8,
    together: Annotated[
        int, typer.Option("--together", min=1, help="How many are submitted at once, in the end.")
    ] = 8,
    json_file: JsonFile = None,
    broker: Broker = None,
    database: Database = None,
    *,
    random_weights: RandomWeights = False,
) -> None:
    """Measure what sampling videos costs, and how full batches are.

    Each video of the folder is captioned alone, then several together, in turn, by a worker of
    this command's own, on a Redis and a PostgreSQL, in which it leaves nothing.
    """
    paths = sorted(
        path.resolve() for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES
    )
    if not paths:
        raise InvalidRequestError(f"there is no video in {folder}; they are told by their suffixes")
    settings = settings_from(
        broker__url=broker,
        database__url=database,
        model__id=model_of(context, model_id, random_weights=random_weights),
    )
    configure_logging(settings.log.model_copy(update={"level": "ERROR"}))
    # Here, because Celery takes its time, and other commands do without.
    from captioner.bench.place import require_servers
    from captioner.bench.videos import VideoPlan, measure_videos

    require_servers(settings)
    plan = VideoPlan(paths, frames, together)
    with telling(plan.steps) as say:
        report = {"at": datetime.now(UTC).isoformat(timespec="seconds")}
        report |= measure_videos(settings, plan, say)
    with written(report, json_file):
        _print(report)


def _print(report: dict[str, Any]) -> None:
    hardware, model, generation = report["hardware"], report["model"], report["generation"]
    console.print(
        f"{escape(hardware['cpu'])}, {hardware['cores']} cores, load {hardware['load_average']}; "
        f"model {escape(model['id'])} in {model['dtype']} on {escape(model['device'])}, "
        f"{generation['num_beams']} beams, at most {generation['max_new_tokens']} new tokens, "
        f"batches of {report['max_batch']}",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("alone")
    for title in ("frames", "sampling, s", "in all, s", "share"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in report["alone"]:
        table.add_row(
            escape(row["file"]),
            str(row["frames"]),
            f"{row['decode_seconds']:.3f}",
            f"{row['total_seconds']:.3f}",
            f"[bold]{row['sampling_share']:.1%}[/]",
        )
    console.print(table)
    many = report["together"]
    console.print(
        f"{many['videos']} together: {many['pictures']} of {many['frames']} frames captioned in "
        f"{many['batches']} batches, on average [bold]{many['batch_fill']:.0%}[/] full (at best "
        f"{many['best_batch_fill']:.0%}, in {many['fewest_batches']}); {many['seconds']:.1f} s, "
        f"the engine busy {many['engine_share']:.0%} of it",
        soft_wrap=True,
    )

"""`demo`: see the whole chain at work."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from captioner.cli.environment import Broker, Database, Json, Model, settings_from
from captioner.cli.jobs import job_sheet
from captioner.cli.output import console, plain, print_json, print_timeline, progress_bar, remarks
from captioner.domain import Job
from captioner.logs import configure_logging
from captioner.private_files import make_private_folder
from captioner.settings import Settings
from captioner.store import schema_status, upgrade_schema

if TYPE_CHECKING:
    from captioner.demo.run import DemoResult

DEMO_MODEL = "demo"
DEMO_KEY_PREFIX = "captioner-demo:"


def demo(
    model: Model = None,
    photos: Annotated[
        Path | None,
        typer.Option("--photos", exists=True, file_okay=False, help="Your own pictures instead."),
    ] = None,
    database: Database = None,
    broker: Broker = None,
    *,
    as_json: Json = False,
) -> None:
    """See the whole chain at work: queue, worker, database, captions.

    Captions 24 drawn scenes and a film of three. Exit 1 if a job failed or, with the demo model,
    fewer than 95 % of the captions are right.
    """
    # Here, because the other commands run where the extra `worker` is not installed.
    from captioner.demo.run import draw_scenes, draw_video, find_photos, run_demo

    settings, folder = _prepare(model, database, broker)
    demo_model = settings.model.id == DEMO_MODEL
    video = None
    pictures = find_photos(photos) if photos else draw_scenes(folder / "pictures")
    if demo_model and not photos:
        video = draw_video(pictures[0].path.parent)
    if not demo_model:
        pictures = [replace(picture, expected=None) for picture in pictures]
    _allow(pictures[0].path.parent if not photos else photos.resolve())
    log = folder / "worker.log"
    if not as_json:
        remarks.print(
            f"worker with model [bold]{plain(settings.model.id)}[/], log in {log}", soft_wrap=True
        )
    with progress_bar() as progress:
        task = progress.add_task("captioning", total=len(pictures) + bool(video))
        result = run_demo(settings_from(), pictures, video, log, lambda: progress.advance(task))
    sheet = _write_sheet(result, folder)
    if as_json:
        print_json(_as_json(result, settings, sheet))
    else:
        _print(result, settings, sheet)
    if not result.passed:
        raise typer.Exit(1)


def _prepare(model: str | None, database: str | None, broker: str | None) -> tuple[Settings, Path]:
    """Settings of the demo's own corner, and a fresh folder for its pictures and log.

    The demo never shares an embedded database, nor a queue, with real work.
    """
    folder = settings_from().data_dir / "demo"
    os.environ.setdefault("CAPTIONER_BROKER__KEY_PREFIX", DEMO_KEY_PREFIX)
    os.environ.setdefault("CAPTIONER_MODEL__ID", DEMO_MODEL)
    settings = settings_from(
        data_dir=folder, model__id=model, database__url=database, broker__url=broker
    )
    shutil.rmtree(folder, ignore_errors=True)
    make_private_folder(folder)
    configure_logging(settings.log.model_copy(update={"level": "WARNING"}))
    upgrade_schema(settings)
    return settings, folder


def _allow(folder: Path) -> None:
    os.environ["CAPTIONER_MEDIA__ALLOWED_ROOTS"] = str(folder)


def _write_sheet(result: DemoResult, folder: Path) -> Path | None:
    """The contact sheet of the demo's video, as `captioner status JOB --contact-sheet` draws it."""
    job = result.video_job
    if job is None or not job.captions:
        return None
    path = folder / "contact-sheet.jpg"
    path.write_bytes(job_sheet(job, settings_from()))
    return path


def _print(result: DemoResult, settings: Settings, sheet: Path | None) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("picture")
    table.add_column("caption")
    table.add_column("score", justify="right")
    table.add_column("seconds", justify="right")
    if result.scored:
        table.add_column("right")
    for picture, job in zip(result.pictures, result.jobs, strict=True):
        row = [
            plain(picture.path.name),
            _caption(job),
            _score(job),
            f"{job.timings.get('total', 0):.2f}",
        ]
        if result.scored:
            right = job.caption == picture.expected
            row.append("[green]yes[/]" if right else f"[red]no[/]: {plain(picture.expected or '')}")
        table.add_row(*row)
    console.print(table)
    if result.video_job:
        _print_video(result, result.video_job)
    score = f"{result.right} of {result.scored} right, " if result.scored else ""
    console.print(
        f"{len(result.jobs)} pictures, {score}{result.images_per_second:.1f} per second; "
        f"worker ended with code {result.worker_exit_code}"
    )
    if result.scored:
        console.print(
            "This is the small demo model, which knows drawn scenes only. "
            "For photographs: make demo MODEL=Salesforce/blip-image-captioning-large PHOTOS=folder",
            style="dim",
        )
    console.print(
        f"rows:     {schema_status(settings).database}, tables jobs, captions, events",
        soft_wrap=True,
    )
    console.print(f"pictures: {result.pictures[0].path.parent}", soft_wrap=True)
    if sheet:
        console.print(f"contact sheet of the video: {sheet}", soft_wrap=True)


def _print_video(result: DemoResult, job: Job) -> None:
    console.print(f"\n{plain(Path(job.source.path).name)}: {_caption(job)}")
    print_timeline(job.captions)
    right = "[green]yes[/]" if result.video_right else "[red]no[/]"
    console.print(f"every scene right, and at its time: {right}\n")


def _caption(job: Job) -> str:
    if job.caption is not None:
        return plain(job.caption)
    return f"[red]{job.failure.code if job.failure else job.state}[/]"


def _score(job: Job) -> str:
    return f"{job.captions[0].score:z.3f}" if job.captions else ""


def _as_json(result: DemoResult, settings: Settings, sheet: Path | None) -> dict[str, object]:
    return {
        "jobs": [
            {
                "id": str(job.id),
                "source": job.source.display,
                "state": job.state.value,
                "caption": job.caption,
                "expected": picture.expected,
                "score": job.captions[0].score if job.captions else None,
            }
            for picture, job in zip(result.pictures, result.jobs, strict=True)
        ],
        "video": result.video_job
        and {
            "job": result.video_job.as_mapping(),
            "timeline": result.video.film.timeline if result.video else [],
            "right": result.video_right,
            "contact_sheet": str(sheet) if sheet else None,
        },
        "images_per_second": round(result.images_per_second, 3),
        "right": result.right,
        "scored": result.scored,
        "model": settings.model.id,
        "worker_exit_code": result.worker_exit_code,
        "database": schema_status(settings).database,
    }

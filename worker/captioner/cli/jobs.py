"""`status`, `list`, `wait` and `cancel`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from captioner.cli.environment import Broker, Database, Json, settings_from
from captioner.cli.output import (
    FrameBars,
    plain,
    print_job,
    print_jobs,
    print_json,
    progress_bar,
    remarks,
)
from captioner.domain import Job, JobState
from captioner.errors import CaptionerError, InvalidRequestError
from captioner.jobs import Jobs
from captioner.logs import configure_logging
from captioner.settings import Settings
from captioner.timeline import segments
from captioner.vtt import web_vtt

Ids = Annotated[
    list[str], typer.Argument(metavar="ID", help="Id of a job, as `submit` and `list` show it.")
]
Timeout = Annotated[
    float | None, typer.Option("--timeout", min=0, metavar="SECONDS", help="Give up waiting.")
]


def connect(database: str | None, broker: str | None) -> Jobs:
    """The installation that the options and the environment name."""
    settings = settings_from(database__url=database, broker__url=broker)
    configure_logging(settings.log)
    return Jobs(settings)


def status(
    ids: Ids,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(
            "--contact-sheet",
            metavar="PATH",
            help="Draw a video's frames with their captions, as JPEG; the video is read again.",
        ),
    ] = None,
    *,
    vtt: Annotated[
        bool, typer.Option("--vtt", help="Print a video's segments as WebVTT, and nothing else.")
    ] = False,
    as_json: Json = False,
    database: Database = None,
    broker: Broker = None,
) -> None:
    """Show jobs, their captions and their errors."""
    if (vtt or contact_sheet) and len(ids) != 1:
        raise InvalidRequestError("--vtt and --contact-sheet are of one job; name one")
    if vtt and as_json:
        raise InvalidRequestError("--vtt and --json exclude each other")
    with connect(database, broker) as jobs:
        found = [jobs.get(job_id) for job_id in ids]
        settings = jobs.settings
    if contact_sheet:
        contact_sheet.write_bytes(job_sheet(found[0], settings))
        remarks.print(f"contact sheet: {plain(str(contact_sheet))}", soft_wrap=True)
    if vtt:
        typer.echo(web_vtt(_require_video(found[0]).captions), nl=False)
        return
    if as_json:
        print_json([job.as_mapping() for job in found])
        return
    for number, job in enumerate(found):
        if number:
            typer.echo()
        print_job(job)


def _require_video(job: Job) -> Job:
    if not segments(job.captions):
        why = "was no video" if job.state is JobState.SUCCEEDED else f"is {job.state}"
        raise CaptionerError(f"job {job.id} has no segments: it {why}")
    return job


def job_sheet(job: Job, settings: Settings) -> bytes:
    """The contact sheet of a job's video, as JPEG; the video is read again.

    Raises:
        CaptionerError: it is no video, or cannot be read here.
    """
    # Here, because these commands run where the extra `worker` is not installed.
    from captioner.sampling import ChildSampler, open_plugins
    from captioner.sheets import sheet_of

    _require_video(job)
    # Who may ask for the job may read its file, if this machine has it.
    roots = settings.media.allowed_roots
    if job.source.scheme == "file":
        roots = (*roots, Path(job.source.path).resolve().parent)
    limits = settings.media.model_copy(update={"allowed_roots": roots})
    plugins = open_plugins(settings.plugins, limits)
    # A stranger's file: in a process with limits, whatever the settings of a worker here say.
    # What there is to say of its frames the worker's log has said.
    log = settings.log.model_copy(update={"level": "WARNING"})
    with closing(ChildSampler(settings.plugins, limits, log)) as sampler:
        return sheet_of(job.request, job.captions, sampler, plugins, limits)


def list_jobs(
    state: Annotated[
        JobState | None, typer.Option("--state", help="Only jobs in this state.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many at most.")] = 20,
    *,
    as_json: Json = False,
    database: Database = None,
    broker: Broker = None,
) -> None:
    """List jobs, newest first, and how many there are."""
    with connect(database, broker) as jobs:
        found = jobs.list(state=state, limit=limit)
        counts = jobs.count_by_state()
    if as_json:
        print_json(
            {
                "jobs": [job.as_mapping() for job in found],
                "counts": {name.value: counts.get(name, 0) for name in JobState},
            }
        )
        return
    if found:
        print_jobs(found)
    total = ", ".join(f"{counts[name]} {name}" for name in JobState if counts.get(name))
    remarks.print(total or "no jobs yet; submit one: captioner submit picture.jpg", style="dim")


def wait(
    ids: Ids,
    timeout: Timeout = None,
    *,
    as_json: Json = False,
    database: Database = None,
    broker: Broker = None,
) -> None:
    """Wait until jobs have ended; exit 1 unless all succeeded."""
    with connect(database, broker) as jobs:
        wait_and_show(jobs, ids, timeout, as_json=as_json)


def wait_and_show(jobs: Jobs, ids: Sequence[str], timeout: float | None, *, as_json: bool) -> None:
    """Wait for jobs, and show what came of them; exit 1 unless all succeeded."""
    ended: dict[str, Job] = {}
    wanted = list(dict.fromkeys(ids))
    with progress_bar() as progress:
        task = progress.add_task("captioning", total=len(wanted))
        bars = FrameBars(progress)
        for job in jobs.wait_each(wanted, timeout_seconds=timeout, look=bars.show):
            ended[str(job.id)] = job
            bars.hide(job)
            progress.advance(task)
    found = [ended.get(job_id) or jobs.get(job_id) for job_id in wanted]
    if as_json:
        print_json([job.as_mapping() for job in found])
    else:
        print_jobs(found)
    late = len(wanted) - len(ended)
    if late:
        remarks.print(f"{late} jobs have not ended after {timeout:g} s; they go on", style="yellow")
    if any(job.state is not JobState.SUCCEEDED for job in found):
        raise typer.Exit(1)


def cancel(
    ids: Ids, *, as_json: Json = False, database: Database = None, broker: Broker = None
) -> None:
    """Cancel jobs that have not ended; exit 1 if one had."""
    with connect(database, broker) as jobs:
        found = [jobs.cancel(job_id) for job_id in ids]
    if as_json:
        print_json([job.as_mapping() for job in found])
    else:
        print_jobs(found)
    if any(job.state is not JobState.CANCELED for job in found):
        raise typer.Exit(1)

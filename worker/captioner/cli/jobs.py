"""`submit`, `status`, `list`, `wait` and `cancel`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from captioner.cli.bulk import report, submit_items
from captioner.cli.environment import Broker, Database, Json, settings_from
from captioner.cli.items import Item, count_lines, items_of_file, items_of_folder
from captioner.cli.output import print_job, print_jobs, print_json, progress_bar, remarks
from captioner.cli.requests import Option, Prompt, parse_metadata, parse_options, parse_source
from captioner.domain import CaptionRequest, Job, JobState, Lane
from captioner.errors import InvalidRequestError
from captioner.jobs import Jobs
from captioner.logs import configure_logging

Ids = Annotated[list[str], typer.Argument(metavar="ID...", show_default=False)]
Timeout = Annotated[
    float | None, typer.Option("--timeout", min=0, metavar="SECONDS", help="Give up waiting.")
]


def _connect(database: str | None, broker: str | None) -> Jobs:
    settings = settings_from(database__url=database, broker__url=broker)
    configure_logging(settings.log)
    return Jobs(settings)


def submit(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE...]", help="Files, URLs, or folders of pictures.", show_default=False
        ),
    ] = None,
    from_file: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="JSON lines with source and, if you like, prompt, options, metadata and "
            "client_key; - is standard input.",
        ),
    ] = None,
    prompt: Prompt = None,
    option: Option = None,
    client_key: Annotated[
        str | None,
        typer.Option("--client-key", help="Your own key; the same key never makes a second job."),
    ] = None,
    metadata: Annotated[
        str | None, typer.Option("--metadata", metavar="JSON", help="Echoed in the result.")
    ] = None,
    *,
    bulk: Annotated[bool, typer.Option("--bulk", help="Let interactive jobs overtake.")] = False,
    wait_for: Annotated[bool, typer.Option("--wait", help="Wait for the captions.")] = False,
    timeout: Timeout = None,
    as_json: Json = False,
    database: Database = None,
    broker: Broker = None,
) -> None:
    """Submit pictures and return at once, or with --wait when they are captioned.

    Folders and files of JSON lines go to the bulk lane, and may be submitted again after an
    interruption: a client key, which pictures of folders have by themselves, makes one job.
    """
    sources = sources or []
    if bool(sources) == bool(from_file):
        raise typer.BadParameter("Missing argument: give either sources or --from FILE")
    folders = [Path(text).is_dir() for text in sources]
    if any(folders) and not all(folders):
        raise InvalidRequestError("give files or folders, not both")
    if client_key and (len(sources) != 1 or any(folders)):
        raise InvalidRequestError("--client-key names one job; give one source with it")
    with _connect(database, broker) as jobs:
        options = parse_options(prompt, option, jobs.settings.generation)
        echoed = parse_metadata(metadata)
        if from_file or any(folders):
            if from_file:
                items = items_of_file(from_file, options.as_mapping(), echoed)
            else:
                items = itertools.chain.from_iterable(
                    items_of_folder(Path(text), options, echoed) for text in sources
                )
            total = count_lines(from_file) if from_file else None
            _submit_bulk(jobs, items, total, wait_for=wait_for, timeout=timeout, as_json=as_json)
            return
        requests = [
            CaptionRequest(
                source=parse_source(text),
                options=options,
                client_key=client_key,
                metadata=echoed,
                lane=Lane.BULK if bulk else Lane.INTERACTIVE,
            )
            for text in sources
        ]
        submitted = [submission.job for submission in jobs.submit_all(requests)]
        undispatched = sum(job.dispatched_at is None for job in submitted)
        if undispatched:
            remarks.print(
                f"[yellow]{undispatched} of {len(submitted)} jobs are kept as queued: the broker "
                "did not take them, a worker will publish them[/]",
                soft_wrap=True,
            )
        if wait_for:
            _wait_and_show(jobs, [str(job.id) for job in submitted], timeout, as_json=as_json)
        elif as_json:
            print_json([job.as_mapping() for job in submitted])
        else:
            for job in submitted:
                typer.echo(f"{job.id}  {job.state}  {job.source.display}")


def _submit_bulk(
    jobs: Jobs,
    items: Iterable[Item],
    total: int | None,
    *,
    wait_for: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    counts, ids = submit_items(
        jobs, items, total, as_json=as_json and not wait_for, keep_ids=wait_for
    )
    remarks.print(report(counts))
    if wait_for:
        _wait_and_show(jobs, [str(job_id) for job_id in ids], timeout, as_json=as_json)
    if counts["refused"]:
        raise typer.Exit(1)


def status(
    ids: Ids, *, as_json: Json = False, database: Database = None, broker: Broker = None
) -> None:
    """Show jobs, their captions and their errors."""
    with _connect(database, broker) as jobs:
        found = [jobs.get(job_id) for job_id in ids]
    if as_json:
        print_json([job.as_mapping() for job in found])
        return
    for number, job in enumerate(found):
        if number:
            typer.echo()
        print_job(job)


def list_jobs(
    state: Annotated[
        JobState | None, typer.Option("--state", help="Only jobs in this state.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 20,
    *,
    as_json: Json = False,
    database: Database = None,
    broker: Broker = None,
) -> None:
    """List jobs, newest first, and how many there are."""
    with _connect(database, broker) as jobs:
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
    with _connect(database, broker) as jobs:
        _wait_and_show(jobs, ids, timeout, as_json=as_json)


def _wait_and_show(jobs: Jobs, ids: Sequence[str], timeout: float | None, *, as_json: bool) -> None:
    ended: dict[str, Job] = {}
    wanted = list(dict.fromkeys(ids))
    with progress_bar() as progress:
        task = progress.add_task("captioning", total=len(wanted))
        for job in jobs.wait_each(wanted, timeout_seconds=timeout):
            ended[str(job.id)] = job
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
    with _connect(database, broker) as jobs:
        found = [jobs.cancel(job_id) for job_id in ids]
    if as_json:
        print_json([job.as_mapping() for job in found])
    else:
        print_jobs(found)
    if any(job.state is not JobState.CANCELED for job in found):
        raise typer.Exit(1)

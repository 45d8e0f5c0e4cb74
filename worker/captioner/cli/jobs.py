"""`submit`, `status`, `list`, `wait` and `cancel`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from captioner.cli.bulk import report, submit_items
from captioner.cli.environment import Broker, Database, Json, settings_from
from captioner.cli.folders import pictures_below
from captioner.cli.items import Item, count_lines, items_of_file, items_of_folder
from captioner.cli.local_paths import is_folder
from captioner.cli.output import (
    FrameBars,
    plain,
    print_job,
    print_jobs,
    print_json,
    progress_bar,
    remarks,
)
from captioner.cli.requests import (
    At,
    Decorative,
    Every,
    Fps,
    Frames,
    Keyframes,
    MaxAltText,
    Option,
    Prompt,
    VideoMode,
    parse_alt_text,
    parse_metadata,
    parse_options,
    parse_source,
    parse_video,
)
from captioner.domain import CaptionRequest, Job, JobState, Lane
from captioner.errors import CaptionerError, InvalidRequestError
from captioner.jobs import Jobs
from captioner.logs import configure_logging
from captioner.options import options_mapping
from captioner.request_json import lane_of
from captioner.settings import Settings
from captioner.timeline import segments
from captioner.vtt import web_vtt

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
            help="JSON lines with source and, if you like, prompt, options, metadata, "
            "client_key and webhook_url; - is standard input.",
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
    webhook_url: Annotated[
        str | None,
        typer.Option(
            "--webhook-url", metavar="URL", help="Who is told how each job ended, by a webhook."
        ),
    ] = None,
    *,
    decorative: Decorative = False,
    max_alt_text: MaxAltText = None,
    frames: Frames = None,
    every: Every = None,
    fps: Fps = None,
    keyframes: Keyframes = False,
    at: At = None,
    video_mode: VideoMode = None,
    bulk: Annotated[bool, typer.Option("--bulk", help="Let interactive jobs overtake.")] = False,
    wait_for: Annotated[bool, typer.Option("--wait", help="Wait for the captions.")] = False,
    timeout: Timeout = None,
    as_json: Json = False,
    database: Database = None,
    broker: Broker = None,
) -> None:
    """Submit pictures and videos and return at once, or with --wait when they are captioned.

    Folders and files of JSON lines go to the bulk lane, and may be submitted again after an
    interruption: a client key, which pictures of folders have by themselves, makes one job.
    """
    sources = sources or []
    if bool(sources) == bool(from_file):
        raise typer.BadParameter("Missing argument: give either sources or --from FILE")
    folders = _are_folders(sources)
    if client_key and (len(sources) != 1 or folders):
        raise InvalidRequestError("--client-key names one job; give one source with it")
    with _connect(database, broker) as jobs:
        options = parse_options(prompt, option, jobs.settings.generation)
        alt_text = parse_alt_text(decorative=decorative, max_characters=max_alt_text)
        video = parse_video(
            frames=frames, every=every, fps=fps, keyframes=keyframes, at=at, mode=video_mode
        )
        echoed = parse_metadata(metadata)
        if from_file or folders:
            if from_file:
                items = items_of_file(
                    from_file, options_mapping(options, alt_text, video), echoed, webhook_url
                )
            else:
                items = itertools.chain.from_iterable(
                    items_of_folder(Path(text), options, alt_text, video, echoed, webhook_url)
                    for text in sources
                )
            total = count_lines(from_file) if from_file else None
            _submit_bulk(jobs, items, total, wait_for=wait_for, timeout=timeout, as_json=as_json)
            return
        requests = [
            CaptionRequest(
                source=source,
                options=options,
                alt_text=alt_text,
                video=video,
                client_key=client_key,
                metadata=echoed,
                webhook_url=webhook_url,
                lane=lane_of(source, video, Lane.BULK if bulk else Lane.INTERACTIVE),
            )
            for source in map(parse_source, sources)
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


def _are_folders(sources: Sequence[str]) -> bool:
    """Whether all are folders, with pictures; refused is what one would have to guess about."""
    folders = [is_folder(text) for text in sources]
    if not any(folders):
        return False
    if not all(folders):
        raise InvalidRequestError("give files or folders, not both")
    for text in sources:
        next(pictures_below(Path(text)))  # raises where there is none
    return True


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
    with _connect(database, broker) as jobs:
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
    with _connect(database, broker) as jobs:
        found = [jobs.cancel(job_id) for job_id in ids]
    if as_json:
        print_json([job.as_mapping() for job in found])
    else:
        print_jobs(found)
    if any(job.state is not JobState.CANCELED for job in found):
        raise typer.Exit(1)

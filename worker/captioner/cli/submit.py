"""`submit`: one source, several, all of a folder, or those of a file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from captioner.cli.bulk import report, submit_items
from captioner.cli.environment import Broker, Database, Json
from captioner.cli.folders import pictures_below
from captioner.cli.items import Item, count_lines, items_of_file, items_of_folder
from captioner.cli.jobs import Timeout, connect, wait_and_show
from captioner.cli.local_paths import is_folder
from captioner.cli.output import print_json, remarks
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
from captioner.domain import CaptionRequest, Lane
from captioner.errors import InvalidRequestError
from captioner.jobs import Jobs
from captioner.options import options_mapping
from captioner.request_json import lane_of


def submit(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE", help="Files, URLs, or folders of pictures.", show_default=False
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
    """Submit pictures and videos.

    Returns at once, or with --wait when they are captioned.

    Folders and files of JSON lines go to the bulk lane, and may be submitted again after an
    interruption: a client key, which pictures of folders have by themselves, makes one job.
    """
    sources = sources or []
    if bool(sources) == bool(from_file):
        raise typer.BadParameter("Missing argument: give either sources or --from FILE")
    folders = _are_folders(sources)
    if client_key and (len(sources) != 1 or folders):
        raise InvalidRequestError("--client-key names one job; give one source with it")
    with connect(database, broker) as jobs:
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
            wait_and_show(jobs, [str(job.id) for job in submitted], timeout, as_json=as_json)
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
        wait_and_show(jobs, [str(job_id) for job_id in ids], timeout, as_json=as_json)
    if counts["refused"]:
        raise typer.Exit(1)

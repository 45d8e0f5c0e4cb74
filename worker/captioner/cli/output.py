"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any
from uuid import UUID

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from captioner.domain import JOINT, Caption, Job, JobFailure, JobState
from captioner.redaction import printable, printable_json, printable_lines
from captioner.timeline import joint_caption, segments, time_range
from captioner.words import keywords

#: Width of tables that are written to a file or a pipe, where nothing need be cut.
PIPE_COLUMNS = 240

#: Results go here; progress and remarks go to `remarks`, so that a pipe gets results alone.
console = Console()
remarks = Console(stderr=True)
if not console.is_terminal:
    console = Console(width=PIPE_COLUMNS)

STYLES = {
    JobState.QUEUED: "cyan",
    JobState.PROCESSING: "yellow",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELED: "magenta",
    JobState.EXPIRED: "magenta",
}


def plain(text: str) -> str:
    """A text that is not ours, for a console: no markup, and nothing that steers a terminal."""
    return escape(printable(text))


def plain_lines(text: str) -> str:
    """The same of a text that may have lines."""
    return escape(printable_lines(text))


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON document; without `indent` it is one line."""
    typer.echo(printable_json(json.dumps(value, indent=indent, ensure_ascii=False)))


def progress_bar() -> Progress:
    """A progress bar on standard error; it shows nothing where that is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=remarks,
        transient=True,
        disable=not remarks.is_terminal,
    )


class FrameBars:
    """A bar for each video that is at work, below that of all jobs."""

    def __init__(self, progress: Progress) -> None:
        """`progress` shows them."""
        self._progress = progress
        self._bars: dict[UUID, TaskID] = {}

    def show(self, job: Job) -> None:
        """How far it is, once that is known."""
        if job.frames_done is None or job.state is not JobState.PROCESSING:
            self.hide(job)
            return
        if job.id not in self._bars:
            name = PurePath(job.source.display).name or job.source.display
            self._bars[job.id] = self._progress.add_task(f"  {plain(name)}", total=None)
        bar = self._bars[job.id]
        self._progress.update(bar, completed=job.frames_done, total=job.frames_total)

    def hide(self, job: Job) -> None:
        """It has ended, or waits for another attempt."""
        if job.id in self._bars:
            self._progress.remove_task(self._bars.pop(job.id))


def frames_done(job: Job) -> str:
    """How far a video is, or how many frames it had; empty for what is none."""
    if job.frames_done is None:
        return ""
    if job.frames_total is None or job.state is JobState.SUCCEEDED:
        return f"{job.frames_done} frames"
    return f"{job.frames_done} of {job.frames_total} frames"


def summary(job: Job) -> str:
    """What came of a job, in a phrase: its caption or why there is none, or how far it is."""
    if job.caption is not None:
        made = job.captions[0].alt_text
        return plain(job.caption) + ("" if made is None else f"\n{alt_text(made)}")
    if job.state is JobState.PROCESSING and (far := frames_done(job)):
        return far
    return _problem(job.failure) if job.failure else ""


def _problem(failure: JobFailure) -> str:
    return f"[red]{failure.code}[/]: {plain(failure.message)}"


def alt_text(text: str) -> str:
    """The line of an alt text below its caption."""
    return f"[dim]alt text:[/] {plain(text)}" if text else "[dim]alt text: empty, decorative[/]"


def print_jobs(jobs: Sequence[Job]) -> None:
    """A table, a row a job."""
    table = Table(box=None, pad_edge=False)
    table.add_column("id", no_wrap=True, min_width=36)
    table.add_column("state", no_wrap=True, min_width=max(map(len, JobState)))
    table.add_column("age", no_wrap=True, justify="right")
    table.add_column("source", overflow="ellipsis", no_wrap=True, max_width=40)
    table.add_column("result", overflow="fold", min_width=12)
    for job in jobs:
        table.add_row(
            str(job.id),
            f"[{STYLES[job.state]}]{job.state}[/]",
            _age(job.created_at),
            plain(job.source.display),
            summary(job),
        )
    console.print(table)


def print_job(job: Job) -> None:
    """Everything worth knowing of one job."""
    grid = Table.grid(padding=(0, 2))
    grid.add_row("job", str(job.id))
    grid.add_row("state", f"[{STYLES[job.state]}]{job.state}[/]")
    grid.add_row("source", plain(job.source.display))
    if job.client_key:
        grid.add_row("client key", plain(job.client_key))
    if far := frames_done(job):
        grid.add_row("frames", far.removesuffix(" frames"))
    parts = segments(job.captions)
    for caption in job.captions:
        label = "caption" if caption.rank == 0 else ""
        at = f"  {time_range(caption)}" if caption.start_seconds is not None else ""
        score = f"score {caption.score:z.3f}{at}"
        grid.add_row(label, f"{_text(caption)}  [dim]{score}[/]")
        if caption.alt_text is not None:
            grid.add_row("", alt_text(caption.alt_text))
    if parts:
        grid.add_row("keywords", plain(", ".join(keywords(parts))))
    if job.failure:
        again = (
            "it may work if submitted again" if job.failure.retryable else "it will not work again"
        )
        grid.add_row("error", f"{_problem(job.failure)} [dim]({again})[/]")
    if job.model:
        model = job.model
        shown = f"{model.id} ({model.backend}, {model.dtype}, {model.device})"
        grid.add_row("model", plain(shown))
        grid.add_row("revision", plain(model.revision))
    if job.timings:
        grid.add_row("seconds", "  ".join(f"{k} {v:.3f}" for k, v in job.timings.items()))
    grid.add_row("created", f"{job.created_at:%Y-%m-%d %H:%M:%S} UTC")
    if job.state is JobState.QUEUED and job.dispatched_at is None:
        grid.add_row("", "[yellow]not yet with the broker; a worker will publish it[/]")
    console.print(grid)


def print_timeline(captions: Sequence[Caption]) -> None:
    """The segments of a video, a row each, and its keywords."""
    parts = segments(captions)
    table = Table(box=None, pad_edge=False)
    table.add_column("seen", no_wrap=True)
    table.add_column("caption", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    joint = joint_caption(captions)
    for part in [*parts, joint] if joint and joint not in parts else parts:
        table.add_row(time_range(part), _text(part), f"{part.score:z.3f}")
    console.print(table)
    console.print(f"[dim]keywords:[/] {plain(', '.join(keywords(parts)))}", soft_wrap=True)


def _text(caption: Caption) -> str:
    """A caption's text, and what one must know to believe it."""
    remark = "  [dim](all frames together: experimental)[/]" if caption.origin == JOINT else ""
    return f"{plain(caption.text)}{remark}"


def _age(created_at: datetime) -> str:
    seconds = max(0, int((datetime.now(UTC) - created_at).total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"

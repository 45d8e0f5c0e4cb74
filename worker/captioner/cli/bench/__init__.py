"""`bench`: how fast, measured."""

from __future__ import annotations

import signal
import sys

import typer

from captioner.cli.bench.events import events
from captioner.cli.bench.model import model
from captioner.cli.bench.queue import queue
from captioner.cli.bench.videos import videos

app = typer.Typer(
    help="Measure how fast model, queue, events and videos are.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("model")(model)
app.command("queue")(queue)
app.command("events")(events)
app.command("videos")(videos)


@app.callback()
def _root() -> None:
    # `timeout` and CI end a command so; what it has started and created has to go then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

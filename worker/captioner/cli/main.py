"""The `captioner` command: its groups, and one clear line for every error.

Exit codes: 0 done, 1 the work failed, 2 the command or a setting is wrong.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

from captioner import __version__
from captioner.cli import (
    bench,
    caption,
    db,
    demo,
    evaluate,
    events,
    jobs,
    plugins,
    submit,
    webhooks,
    worker,
)
from captioner.cli.encodings import escape_what_cannot_be_encoded
from captioner.cli.local_paths import one_line, why
from captioner.errors import CaptionerError, InvalidRequestError, SettingsError
from captioner.redaction import printable_lines

#: A command that cannot be understood. Typer has its own copy of click's classes and exports only
#: this one's heir.
UsageError: type[Any] = typer.BadParameter.__bases__[0]

#: What the extra `worker` brings; a site that only submits does without.
WORKER_MODULES = frozenset(
    {"PIL", "httpcore", "httpx", "numpy", "safetensors", "tokenizers", "torch", "transformers"}
)
#: Which extra brings what.
EXTRAS = dict.fromkeys(WORKER_MODULES, "worker") | {"cryptography": "webhooks"}

#: What a shell reports of a program that a broken pipe ended.
BROKEN_PIPE = 141

app = typer.Typer(
    name="captioner",
    help="Durable captioning: submit pictures and videos, get captions, lose nothing.",
    epilog="""\b
Examples:
  captioner demo                                    all of it, with nothing else installed
  captioner caption folder --model demo             right here
  captioner worker --model demo                     as a service: this in one terminal,
  captioner submit picture.png --wait               this in another""",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.command("worker")(worker.worker)
app.command("submit")(submit.submit)
app.command("status")(jobs.status)
app.command("list")(jobs.list_jobs)
app.command("wait")(jobs.wait)
app.command("cancel")(jobs.cancel)
app.command("caption")(caption.caption)
app.command("evaluate")(evaluate.evaluate)
app.command("plugins")(plugins.plugins)
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(events.app, name="events")
app.add_typer(db.app, name="db")
app.add_typer(bench.app, name="bench")


def _print_version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"captioner {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    _version: bool = typer.Option(
        False,  # noqa: FBT003  # typer's way of writing a default
        "--version",
        callback=lambda value: _print_version(wanted=value),
        is_eager=True,
        help="Print the version and exit.",
    ),
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    escape_what_cannot_be_encoded()
    try:
        code = app(args=arguments, standalone_mode=False)
        _flush()
    except UsageError as error:
        where = error.ctx.command_path if error.ctx else "captioner"
        problem = error.format_message().replace("Value error, ", "")
        _fail(f"{problem.rstrip('.')}. See: {where} --help", 2)
    except (SettingsError, InvalidRequestError) as error:
        _fail(str(error), 2)
    except CaptionerError as error:
        _fail(str(error), 1)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        _fail(f"this needs {error.name}; run: pip install 'captioner[{EXTRAS[error.name]}]'", 2)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except (OSError, SystemExit) as error:
        _end_of_output(error)
    sys.exit(code if isinstance(code, int) else 0)


def _end_of_output(error: OSError | SystemExit) -> NoReturn:
    """End as what could not be written demands; raises again what is something else."""
    # Where the reader of a pipe went away, as `head` does, click and rich exit with 1.
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
        _drop_output()
        sys.exit(BROKEN_PIPE)
    if isinstance(error, OSError) and error.filename is not None:
        _fail(f"{one_line(os.fsdecode(error.filename))}: {why(error)}", 1)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        _fail(f"the output cannot be written: {why(error)}", 1)
    raise error


def _flush() -> None:
    if sys.stdout:  # None where the shell closed it
        sys.stdout.flush()


def _drop_output() -> None:
    """Let nothing be written at exit, where Python would complain once more."""
    if sys.__stdout__:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())


def _fail(message: str, code: int) -> NoReturn:
    try:
        _flush()
    except OSError:
        _drop_output()
    if sys.stderr:
        sys.stderr.write(f"captioner: {printable_lines(message)}\n")
    sys.exit(code)

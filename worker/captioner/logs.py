"""Structured logs: every line can carry the job it speaks of.

`logging.getLogger(__name__)` as everywhere; `job_context(job_id)` around the work adds the id, and
the formatters print it, as text for people or as one JSON object a line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

from captioner.redaction import printable, printable_json, printable_lines

if TYPE_CHECKING:
    from captioner.settings import LogSettings

#: Of a message, and of each line of a traceback; an exception may hold all that it was about.
LONGEST_CHARACTERS = 4_000

_job_id: ContextVar[object] = ContextVar("captioner_job_id", default=None)

#: What every LogRecord has; anything else was passed as `extra` and is printed.
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class job_context:  # noqa: N801  # used like a function
    """Log lines written inside the block carry this job id."""

    __slots__ = ("_job_id", "_token")

    def __init__(self, job_id: object) -> None:
        """`job_id` is made a text when a line is written: most blocks write none."""
        self._job_id = job_id

    def __enter__(self) -> None:
        self._token = _job_id.set(self._job_id)

    def __exit__(self, *_: object) -> None:
        _job_id.reset(self._token)


def _extras(record: logging.LogRecord) -> dict[str, object]:
    extras = {k: v for k, v in record.__dict__.items() if k not in _STANDARD and k != "data"}
    job_id = _job_id.get()
    return {"job_id": str(job_id), **extras} if job_id and "job_id" not in extras else extras


def _cut(text: str) -> str:
    if len(text) <= LONGEST_CHARACTERS:
        return text
    return f"{text[:LONGEST_CHARACTERS]}… ({len(text)} characters)"


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = formatter.formatException(record.exc_info) if record.exc_info else ""
    return "\n".join(map(_cut, text.split("\n")))


class TextFormatter(logging.Formatter):
    """`2026-01-02 03:04:05 INFO captioner.service: text  key=value …`.

    What strangers write may be in it: it forges no line, and steers no terminal.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback below it when there is one."""
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S")
        message = _cut(record.getMessage())
        message = " ".join(message.splitlines())  # Celery's have lines, to be read
        line = f"{time} {record.levelname} {record.name}: {message}"
        line += "".join(f"  {key}={value}" for key, value in _extras(record).items())
        line = printable(line)
        if record.exc_info:
            line += "\n" + printable_lines(_traceback(self, record))
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, then the extras."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; values JSON does not know are printed as text."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": _cut(record.getMessage()),
            **_extras(record),
        }
        if record.exc_info:
            entry["exception"] = _traceback(self, record)
        return printable_json(json.dumps(entry, default=str, ensure_ascii=False))


def configure_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send every log line of this process to `stream` (standard error) in the chosen format."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    # One line a request or task at INFO would drown ours.
    for chatty in ("httpx", "httpcore", "celery.worker.strategy", "alembic"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
    # Python's own warnings are lines of no format.
    logging.captureWarnings(settings.format == "json")
    # Its warnings are messages that we have put back ourselves, and said why, with a traceback.
    logging.getLogger("celery.app.trace").setLevel(logging.ERROR)


def log_from_signal(logger: logging.Logger, message: str) -> None:
    """A line at INFO, written past Python's streams, which the handler may have interrupted."""
    handlers, stream = logging.getLogger().handlers, sys.__stderr__
    if not (logger.isEnabledFor(logging.INFO) and handlers and stream):
        return
    record = logger.makeRecord(logger.name, logging.INFO, "", 0, message, (), None)
    with contextlib.suppress(OSError):  # nobody reads it any more
        os.write(stream.fileno(), f"{handlers[0].format(record)}\n".encode())

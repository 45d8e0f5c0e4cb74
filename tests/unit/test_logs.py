from __future__ import annotations

import io
import json
import logging
from typing import Literal

import pytest

from captioner.logs import configure_logging, job_context
from captioner.settings import LogSettings


def test_lines_carry_the_job_they_speak_of() -> None:
    stream = io.StringIO()
    configure_logging(LogSettings(), stream)
    with job_context("7c9e"):
        logging.getLogger("captioner.x").info("done", extra={"seconds": 1.5})
    logging.getLogger("captioner.x").info("idle")
    first, second = stream.getvalue().splitlines()
    assert first.endswith("INFO captioner.x: done  job_id=7c9e  seconds=1.5")
    assert "job_id" not in second


def test_json_is_one_object_a_line_even_with_a_traceback() -> None:
    stream = io.StringIO()
    configure_logging(LogSettings(format="json"), stream)
    with job_context("7c9e"):
        try:
            int("broken\nin two lines")
        except ValueError:
            logging.getLogger("captioner.x").exception("failed")
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert entry["job_id"] == "7c9e"
    assert entry["message"] == "failed"
    assert "ValueError" in entry["exception"]


def test_what_strangers_wrote_forges_no_line_and_steers_no_terminal() -> None:
    hostile = "a\x1b[2Jb\n2026-01-02 03:04:05 ERROR forged\x9b31m"

    def fail() -> None:
        raise ValueError(hostile)

    stream = io.StringIO()
    configure_logging(LogSettings(), stream)
    try:
        fail()
    except ValueError:
        logging.getLogger("captioner.x").exception("no %s", hostile, extra={"name_": hostile})
    line, *traceback = stream.getvalue().splitlines()
    assert line.isprintable()
    assert "no a�[2Jb 2026-01-02 03:04:05 ERROR forged�31m  name_=a�[2Jb�2026" in line
    assert traceback[0] == "Traceback (most recent call last):"
    assert all(map(str.isprintable, traceback))


@pytest.mark.parametrize("form", ["text", "json"])
def test_who_says_too_much_is_cut_short(form: Literal["text", "json"]) -> None:
    """As a plugin does that puts a whole answer into its exception."""
    stream = io.StringIO()
    configure_logging(LogSettings(format=form), stream)
    answer = "z" * 10_000_000

    def fail() -> None:
        raise ValueError(answer)

    try:
        fail()
    except ValueError:
        logging.getLogger("captioner.x").exception("no: %s", answer)
    assert len(stream.getvalue()) < 20_000
    assert stream.getvalue().count("(10000004 characters)") == 1
    assert stream.getvalue().count("(10000012 characters)") == 1


def test_json_steers_no_terminal_either() -> None:
    stream = io.StringIO()
    configure_logging(LogSettings(format="json"), stream)
    logging.getLogger("captioner.x").info("a\x1b\x7f\x9b31m")
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()
    assert json.loads(line)["message"] == "a\x1b\x7f\x9b31m"


def test_the_level_is_kept() -> None:
    stream = io.StringIO()
    configure_logging(LogSettings(level="WARNING"), stream)
    logging.getLogger("captioner.x").info("quiet")
    assert stream.getvalue() == ""

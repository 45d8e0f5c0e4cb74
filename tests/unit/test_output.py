"""What commands print holds what strangers wrote, and steers no terminal with it."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING

import pytest

from captioner import CaptionRequest, ErrorCode, Source
from captioner.cli.main import main
from captioner.cli.output import plain, plain_lines, print_job, print_jobs, print_json
from captioner.domain import JobFailure, JobState
from captioner.testing import memory_store

if TYPE_CHECKING:
    from captioner.domain import Job

#: Clears a screen, forges a line, begins a sequence of its own, and is no markup.
HOSTILE = "a\x1b[2Jb\nc\x9b31md[red]e"
SHOWN = (
    "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c\N{REPLACEMENT CHARACTER}31md[red]e"
)
_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@pytest.fixture
def job() -> Job:
    with memory_store() as store:
        (submission,) = store.add(
            [CaptionRequest(source=Source("/a.png"), client_key=HOSTILE, metadata={"a": HOSTILE})]
        )
    failure = JobFailure(ErrorCode.DECODE_FAILED, HOSTILE, retryable=False)
    return dataclasses.replace(submission.job, state=JobState.FAILED, failure=failure)


def test_tables_steer_no_terminal(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    print_job(job)
    print_jobs([job])

    printed = capsys.readouterr().out
    assert not _CONTROLS.search(printed)
    assert printed.count(SHOWN) == 3  # as key, and twice as failure


def test_nor_does_json_which_means_the_same(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    print_json(job.as_mapping())
    print_json({"é": "\x7f\x9f\xa0"}, indent=None)

    printed = capsys.readouterr().out
    assert not _CONTROLS.search(printed)
    document, line = printed.rstrip().rsplit("\n", 1)
    assert json.loads(document)["metadata"] == {"a": HOSTILE}
    assert line == r'{"é": "\u007f\u009f' + '\xa0"}'


def test_nor_do_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["submit", "/a.png", f"--{HOSTILE}"])

    assert not _CONTROLS.search(capsys.readouterr().err)


def test_lines_stay_lines_where_there_may_be_some() -> None:
    assert plain("a\tb [bold]") == "a\N{REPLACEMENT CHARACTER}b \\[bold]"
    assert plain_lines("a\r\n\tb\x1b") == "a\n    b\N{REPLACEMENT CHARACTER}"

"""`captioner bench events` on both databases, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from processes import captioner, environment


@pytest.mark.long
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_dead_targets_are_told_from_the_others(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgres_url") if database == "postgresql" else ""
    report_path = tmp_path / "report.json"
    done = captioner(
        *("bench", "events", "--events", "300", "--targets", "3", "--dead", "1"),
        *("--json", str(report_path)),
        env=environment(tmp_path, DATABASE__URL=url),
    )
    assert done.returncode == 0, done.stderr
    assert "beside the dead the others are served at" in done.stdout
    report = json.loads(report_path.read_text())
    assert report["database"] == database
    # A dead target holds each that waits for it for 15 s.
    assert report["some_dead_seconds"] < 15
    assert report["ratio"] > 0
    assert report["ratio_alone"] > 0


def test_somebody_has_to_answer(tmp_path: Path) -> None:
    arguments = ("bench", "events", "--targets", "2", "--dead", "2")
    done = captioner(*arguments, env=environment(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "--dead must be less than --targets" in done.stderr

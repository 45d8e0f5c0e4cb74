"""Arguments that nothing can be done with are one line, whatever they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from captioner.cli import main

HUGE = "9" * 30
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["events", "show", HUGE], 1, f"no delivery has the id {HUGE}"),
        (["events", "show", "--", f"-{HUGE}"], 1, f"no delivery has the id -{HUGE}"),
        (["events", "redeliver", HUGE], 1, f"{HUGE}: unknown"),
        (["events", "redeliver", "--event", HUGE], 1, f"no event has the id {HUGE}"),
        (["events", "list", "--before", HUGE], 0, "no deliveries yet"),
        (["events", "list", f"--before=-{HUGE}"], 0, "no deliveries yet"),
        (["events", "list", "--target", "\udcff"], 2, "--target"),
        (["events", "list", "--plugin", "\udcff"], 2, "--plugin"),
        (["worker", "--name", "a b%z"], 2, "CAPTIONER_WORKER__NAME: %z stands for nothing"),
        (["caption", __file__, "--overwrite"], 2, "--overwrite is of --sidecar"),
        (["submit", "https://h/a.jpg", "--metadata", DEEP], 2, "--metadata must be a JSON object"),
        (["submit", "https://h/a.jpg", "-o", f"num_beams={DEEP}"], 2, "num_beams must be"),
    ],
)
def test_odd_arguments_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    told: str,
) -> None:
    monkeypatch.setenv("CAPTIONER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CAPTIONER_MODEL__ID", "demo")
    monkeypatch.setenv("CAPTIONER_WORKER__NAME", "a")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == code, line
    assert told in line

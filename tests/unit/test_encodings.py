"""What a terminal's encoding lacks is escaped, and JSON remains JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from processes import captioner, environment

KEY = "ä \N{CAT FACE}"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_any_encoding_will_do(tmp_path: Path, encoding: str) -> None:
    env = environment(tmp_path) | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    (tmp_path / f"{KEY}.png").touch()

    told = captioner("submit", f"{KEY}.png", "--client-key", KEY, "--json", env=env, cwd=tmp_path)

    assert told.returncode == 0, told.stderr
    (job,) = json.loads(told.stdout)
    assert (job["client_key"], Path(job["source"]).stem) == (KEY, KEY)
    shown = captioner("status", job["id"], env=env)
    assert (shown.returncode, shown.stderr) == (0, "")

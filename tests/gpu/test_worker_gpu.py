"""A worker whose engine is on a CUDA device, and a device that is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from processes import captioner, environment

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

#: A table of words too short for the prompt: reading it is a device assert.
_LOSE_THE_DEVICE = """
from captioner.errors import DeviceLostError
from captioner.inference import GenerationOptions, load_captioner
from checkpoints import random_picture

picture = random_picture(1)
model = load_captioner("demo", device="cuda", dtype={dtype!r})
model.generate([picture], GenerationOptions())
model.model.text.token_embedding.weight.data = model.model.text.token_embedding.weight[:1]
for attempt in range(2):
    try:
        model.generate([picture], GenerationOptions(num_beams=2))
    except DeviceLostError as error:
        print("lost:", error)
"""


def test_the_demo_runs_on_the_device(tmp_path: Path) -> None:
    env = environment(tmp_path, MODEL__DEVICE="cuda")
    del env["CAPTIONER_MEDIA__ALLOWED_ROOTS"]
    result = captioner("demo", "--json", env=env, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert [job["state"] for job in report["jobs"]] == ["succeeded"] * 24
    assert report["right"] >= 23
    assert report["worker_exit_code"] == 0
    log = (tmp_path / "data" / "demo" / "worker.log").read_text()
    assert "cuda:0" in log
    assert "float16" in log


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_lost_device_is_told_from_every_other_error(tmp_path: Path, dtype: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _LOSE_THE_DEVICE.format(dtype=dtype)],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.stdout.count("lost: cuda:0 cannot go on") == 2, result.stderr

"""`bench model` on a CUDA device: what only such a device has to report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from processes import captioner, environment

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_the_comparison_runs_and_reports_the_memory_of_both(tmp_path: Path) -> None:
    result = captioner(
        "bench", "model", "--model", "demo", "--device", "cuda", "--dtype", "float16", "--batch",
        "1,8", "--beams", "1,3", "--rounds", "1", "--tokens", "6", "--json", "report.json",
        env=environment(tmp_path), cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["hardware"]["device"].startswith("cuda")
    assert report["hardware"]["gpu"]
    assert len(report["rows"]) == 4
    for row in report["rows"]:
        assert (row["dtype"], row["unexplained_flips"]) == ("float16", 0)
        assert min(row["seconds"], row["reference_seconds"]) > 0
        assert min(row["peak_memory_bytes"], row["reference_peak_memory_bytes"]) > 0
    assert report["encoder"]["share"] > 0


def test_memory_does_not_grow(tmp_path: Path) -> None:
    result = captioner(
        "bench", "model", "--model", "demo", "--device", "cuda", "--batch", "1,8", "--beams", "3",
        "--tokens", "6", "--batches", "1000", "--json", "report.json",
        env=environment(tmp_path), cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    memory = json.loads((tmp_path / "report.json").read_text())["memory"]
    assert memory["device_bytes_growth"] < 2**20
    assert memory["resident_bytes_growth"] < 32 * 2**20  # the system's own, too

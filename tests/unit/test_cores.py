"""How many cores a process has: its affinity, and what its container is given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from captioner import cores
from captioner.cores import available_cores


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of `/`, as the module sees it, on a machine of eight cores."""
    monkeypatch.setattr(cores, "Path", lambda name: tmp_path / Path(name).relative_to("/"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    return tmp_path


def limit(root: Path, file: str, text: str) -> None:
    path = root / "sys/fs/cgroup" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("50000 100000\n", 1),
        ("1000 100000\n", 1),
        ("100000 50000\n", 2),
        ("6400000 100000\n", 8),
        ("0 100000\n", 8),
        ("1000 0\n", 8),
        ("", 8),
    ],
)
def test_cores_are_those_of_the_containers_quota(root: Path, text: str, expected: int) -> None:
    limit(root, "cpu.max", text)
    assert available_cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1\n", 8), ("250000\n", 3), ("none\n", 8)])
def test_the_first_kind_of_cgroups_has_a_file_for_each_number(
    root: Path, quota: str, expected: int
) -> None:
    limit(root, "cpu/cpu.cfs_quota_us", quota)
    assert available_cores() == 8, "no period"
    limit(root, "cpu/cpu.cfs_period_us", "100000\n")
    assert available_cores() == expected


def test_what_systemd_runs_has_the_least_quota_of_its_group_and_those_above(root: Path) -> None:
    (root / "proc/self").mkdir(parents=True)
    own = root / "proc/self/cgroup"
    own.write_text("1:name=systemd:/other\n0::/system.slice/captioner.service\n")
    limit(root, "system.slice/captioner.service/cpu.max", "max 100000\n")
    assert available_cores() == 8
    limit(root, "system.slice/captioner.service/cpu.max", "300000 100000\n")
    assert available_cores() == 3
    limit(root, "system.slice/cpu.max", "200000 100000\n")
    assert available_cores() == 2
    # A container that sees the machine's names, and its own group as the uppermost.
    own.write_text("0::/docker/0123\n")
    assert available_cores() == 8
    limit(root, "cpu.max", "400000 100000\n")
    assert available_cores() == 4
    own.write_text("nonsense\n0::/\n")
    assert available_cores() == 4


def test_without_a_quota_cores_are_those_of_the_affinity(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert available_cores() == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3}, raising=False)
    assert available_cores() == 1
    limit(root, "cpu.max", "400000 100000\n")
    assert available_cores() == 1
    # macOS has no affinity, and a machine may not tell its number of cores.
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cores() == 4
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1

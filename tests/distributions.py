"""Plugins as pip would leave them in site-packages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captioner.plugins import ENTRY_POINT_GROUP

if TYPE_CHECKING:
    from pathlib import Path


def install(folder: Path, name: str, code: str) -> None:
    """Put the plugin `name`, version 1.2, into a folder that is or will be in `sys.path`."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{name} = {name}\n")

"""The README's tables are true: they are what the code says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from captioner.errors import ErrorCode
from captioner.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [path for path in ROOT.rglob("*.md") if ".venv" not in path.parts]


def section(name: str) -> list[str]:
    """The rows of the table between `<!-- name: … -->` and `<!-- end of name -->`."""
    found = re.search(rf"<!-- {name}: .*?-->\n(.*?)<!-- end of {name} -->", README, re.DOTALL)
    assert found, name
    return found.group(1).splitlines()[2:]


def settings_rows() -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            for inner, inner_field in section.model_fields.items():
                yield row(f"{name}__{inner}", inner_field)
        else:
            yield row(name, field)


def row(name: str, field: FieldInfo) -> str:
    return f"| `CAPTIONER_{name.upper()}` | {shown(field)} | {field.description} |"


def shown(field: FieldInfo) -> str:
    default: Any = field.default
    if field.default_factory or default in (None, (), (Path(),)) or isinstance(default, SecretStr):
        return ""
    if isinstance(default, tuple):  # as the variable takes it
        return f"`{','.join(map(str, default))}`"
    return f"`{default}`"


def test_every_setting_is_documented_with_its_default() -> None:
    assert section("settings") == list(settings_rows())


def test_every_error_code_is_documented() -> None:
    documented = {}
    for line in section("errors"):
        _, code, later, _, _ = (cell.strip() for cell in line.split("|"))
        documented[code.strip("`")] = later
    assert documented == {code.value: "yes" if code.retryable else "no" for code in ErrorCode}


def test_the_map_of_the_package_is_true() -> None:
    rows = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("| what happens | modules |\n")[1]
    named = re.findall(r"`(\w+)`", rows.partition("\n\n")[0])
    there = {path.stem for path in (ROOT / "worker" / "captioner").iterdir()}
    assert len(named) > 20
    assert set(named) <= there


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target

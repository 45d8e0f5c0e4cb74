"""plugins/README.md is true: its hooks, its settings, its table, and its samples, which are run."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

import captioner
import captioner.testing
from captioner import DeliveryError, ErrorCode, Event, hookimpl, hookspecs
from captioner.plugins import Plugins
from captioner.testing import FakeCaption, FakeCaptionModel, caption_with

ROOT = Path(__file__).parents[2]
README = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ENTRY_POINTS = PROJECT["project"]["entry-points"]["captioner.plugins"]
BUILT_IN = {value.partition(":")[0] for value in ENTRY_POINTS.values()}
HOOKS = {
    name: function
    for name, function in inspect.getmembers(hookspecs, inspect.isfunction)
    if function.__module__ == hookspecs.__name__
}
PLUGIN_FILES = [*(ROOT / "plugins").rglob("*.py"), *(ROOT / "tests/example_plugin").rglob("*.py")]
#: What a plugin may import of captioner, and what each of them offers.
PUBLIC = ("captioner", "captioner.testing", "captioner.webhooks")


def samples() -> Iterator[tuple[str, str]]:
    """Each Python sample's file name, which is its first line, and its code."""
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        yield code.partition("\n")[0].removeprefix("# "), code


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all samples, where they can be imported from."""
    for name, code in samples():
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A sample, which is forgotten again: others may have its name."""
    module = __import__(name)
    monkeypatch.delitem(sys.modules, name)
    return module


# --- Hooks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented_with_its_signature(name: str) -> None:
    arguments = ", ".join(inspect.signature(HOOKS[name]).parameters)
    assert f"### {name}({arguments})\n" in README


def test_no_other_hook_is_documented() -> None:
    assert set(re.findall(r"^### (\w+)\(", README, re.MULTILINE)) == HOOKS.keys()


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_says_of_which_kind_it_is(name: str) -> None:
    section = inspect.getsource(hookspecs).split(f"def {name}(")[0].rpartition("# ---- ")[2]
    kind = section.split()[0].removesuffix("s")
    paragraph = README.split(f"### {name}(")[1].split("\n\n")[1]
    assert paragraph.startswith((f"{kind}.", f"{kind},"))


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_implemented_in_some_test(name: str) -> None:
    implementation = re.compile(rf"@hookimpl.*\n\s*def {name}\(")
    files = (ROOT / "tests").rglob("*.py")
    assert any(implementation.search(file.read_text(encoding="utf-8")) for file in files)


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_typed_and_says_what_it_is_for(name: str) -> None:
    signature = inspect.signature(HOOKS[name])
    assert HOOKS[name].__doc__
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty


@pytest.mark.parametrize("name", HOOKS)
def test_every_type_of_a_hook_is_a_public_name(name: str) -> None:
    types = {word for one in HOOKS[name].__annotations__.values() for word in words_of(one)}
    elsewhere = {"Collection", "Iterable", "None", "Path", "Sequence"}
    assert types - elsewhere <= {*captioner.__all__}


def words_of(annotation: str) -> list[str]:
    return re.findall(r"\b[A-Z]\w+", annotation)


# --- Built-in plugins -----------------------------------------------------------------------------


def test_every_built_in_plugin_is_in_the_table_and_in_the_wheel() -> None:
    table = set(re.findall(r"^\| `(captioner_\w+)` \|", README, re.MULTILINE))
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert table == BUILT_IN
    assert table == {Path(package).name for package in packages} - {"captioner"}
    assert table == {path.parent.name for path in (ROOT / "plugins").glob("*/__init__.py")}


def test_every_setting_of_a_plugin_is_documented() -> None:
    found = set()
    for file in (ROOT / "plugins").rglob("*.py"):
        found |= set(re.findall(r"\bCAPTIONER_[A-Z][A-Z_]*[A-Z]\b", file.read_text("utf-8")))
    own = {name for name in found if "__" not in name}
    assert own
    assert {name for name in own if f"`{name}`" not in README} == set()
    # Those of captioner itself, which messages name.
    assert {name for name in found - own if f"| `{name}` |" not in SETTINGS} == set()


@pytest.mark.parametrize("file", PLUGIN_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_plugins_import_only_public_names(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            assert not [one for one in modules if one.partition(".")[0] == "captioner"]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "captioner":
            assert node.module in PUBLIC
            offered = __import__(node.module, fromlist=["__all__"]).__all__
            below = {one.removeprefix(f"{node.module}.") for one in PUBLIC}
            assert {alias.name for alias in node.names} <= {*offered, *below}


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_is_there(name: str) -> None:
    module = __import__(name, fromlist=["__all__"])
    assert module.__all__
    for one in module.__all__:
        assert getattr(module, one) is not None


def test_importing_the_public_names_loads_nothing_heavy() -> None:
    code = (
        "import sys, captioner, captioner.testing\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'sqlalchemy', 'celery', 'httpx'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


# --- Samples --------------------------------------------------------------------------------------


def test_every_sample_has_a_file_name() -> None:
    names = [name for name, _ in samples()]
    assert len(names) >= 4
    for name in names:
        assert re.fullmatch(r"\w+\.py", name), name


def test_what_the_text_calls_can_be_called_so() -> None:
    checked = 0
    for name, written in re.findall(r"`((\w+)\([^`]*\))`", README.replace("\n", " ")):
        called = getattr(captioner, written, None) or getattr(captioner.testing, written, None)
        if called is None or name.endswith("()"):
            continue
        call = ast.parse(name, mode="eval").body
        assert isinstance(call, ast.Call)
        values = {one.arg: one.value for one in call.keywords if one.arg}
        inspect.signature(called).bind(*call.args, **values)
        checked += 1
    assert checked >= 3


def test_the_plugin_in_ten_lines_has_ten_and_an_entry_point() -> None:
    code = dict(samples())["my_plugin.py"]
    assert len([line for line in code.splitlines()[1:] if line.strip()]) <= 10
    (toml,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    entries = tomllib.loads(toml)["project"]["entry-points"]["captioner.plugins"]
    assert entries == {"my_plugin": "my_plugin"}


def test_every_plugin_of_the_samples_can_be_used(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name.removesuffix(".py") for name, _ in samples() if not name.startswith("test_")]
    plugins = Plugins()
    for name in names:
        plugins.register(imported(name, monkeypatch), name)
    assert len(plugins.infos()) == len(names)


def test_the_test_in_five_lines_passes(written: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:valkey"],
        cwd=written,
        env=os.environ | {"PYTHONPATH": str(written)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout


def test_the_sample_that_opens_sources(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    plugin = imported("copy_plugin", monkeypatch)
    monkeypatch.setattr(plugin, "SHELF", tmp_path)
    Image.new("RGB", (9, 9), (7, 8, 9)).save(tmp_path / "grey.png")
    assert caption_with(plugin, "shelf://x/grey.png").caption == "mean colour 7 8 9"
    failure = caption_with(plugin, "shelf://x/black.png").failure
    assert failure
    assert (failure.code, failure.message) == (ErrorCode.FETCH_FAILED, "no black.png on the shelf")


def test_the_sample_that_processes_captions(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rude(FakeCaptionModel):
        def generate(self, *_: object) -> list[list[FakeCaption]]:
            return [[FakeCaption("a rude sign", "a rude sign", -1.0)]]

    plugin = imported("polite_plugin", monkeypatch)
    assert caption_with(plugin, model=Rude()).caption == "a impolite sign"
    assert caption_with(plugin).caption == "mean colour 10 20 30"


def test_the_sample_that_delivers_events(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hears:
        @hookimpl
        def observe(self, event: Event) -> None:
            heard.append(event)

    heard: list[Event] = []
    plugin = imported("diary_plugin", monkeypatch)
    job = caption_with(Hears())
    (event,) = heard
    assert plugin.event_targets(event, job) == ["diary"]
    assert plugin.event_targets(event, replace(job, captions=())) == []
    monkeypatch.setattr(plugin, "DIARY", tmp_path / "diary.txt")
    assert plugin.deliver_event(event, job, "diary").excerpt == "written"
    assert (tmp_path / "diary.txt").read_text() == f"{event.id} {job.caption}\n"
    monkeypatch.setattr(plugin, "DIARY", tmp_path / "no folder" / "diary.txt")
    with pytest.raises(DeliveryError, match="no folder is gone") as raised:
        plugin.deliver_event(event, job, "diary")
    assert raised.value.permanent

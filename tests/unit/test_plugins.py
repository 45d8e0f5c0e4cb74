from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import pytest

from captioner import CaptionRequest, Event, Frame, JobError, Media, Source, hookimpl
from captioner.errors import ErrorCode, PluginError, SettingsError
from captioner.plugins import Plugins, load_plugins
from captioner.settings import PluginSettings
from captioner.testing import registered_plugin
from distributions import install

MEDIA = Media(Path("/x"), "/x")
REQUEST = CaptionRequest(source=Source("/x"))
FRAME = Frame(np.zeros((2, 2, 3), np.uint8))


class Gives:
    def __init__(self, result: Any) -> None:
        self.result = result
        self.heard: list[Event] = []

    @hookimpl
    def sample_frames(self, media: Media) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    @hookimpl
    def observe(self, event: Event) -> None:
        self.heard.append(event)


def check(item: object) -> None:
    if not isinstance(item, Frame):
        raise TypeError("gave no Frame")


def sample(plugins: Plugins) -> Any:
    return list(
        plugins.stream("sample_frames", check=check, media=MEDIA, request=REQUEST, image_size=2)
    )


def test_the_first_provider_with_a_result_wins() -> None:
    plugins = Plugins()
    plugins.register(Gives([FRAME]), "first")
    plugins.register(Gives(None), "second")  # asked first: the last one registered is
    assert sample(plugins) == [FRAME]


def test_no_provider_is_no_result() -> None:
    assert sample(Plugins()) == []


def test_a_failing_provider_is_named_and_the_others_are_not_asked() -> None:
    plugins = Plugins()
    plugins.register(Gives([FRAME]), "innocent")
    plugins.register(Gives(KeyError("oops")), "guilty")
    with pytest.raises(PluginError, match=r"plugin 'guilty' failed in sample_frames: KeyError"):
        sample(plugins)


def test_an_iterator_that_fails_while_it_runs_is_the_providers_fault() -> None:
    def frames() -> Iterator[Frame]:
        yield FRAME
        raise OSError("half way")

    plugins = Plugins()
    plugins.register(Gives(frames()), "guilty")
    with pytest.raises(PluginError, match="guilty"):
        sample(plugins)


def test_a_wrong_item_is_the_providers_fault() -> None:
    plugins = Plugins()
    plugins.register(Gives(["no frame"]), "guilty")
    with pytest.raises(PluginError, match=r"'guilty' failed in sample_frames: TypeError: gave no"):
        sample(plugins)


def test_a_provider_may_fail_the_job_with_a_code_of_its_choice() -> None:
    plugins = Plugins()
    plugins.register(Gives(JobError(ErrorCode.DECODE_FAILED, "no")), "strict")
    with pytest.raises(JobError) as raised:
        sample(plugins)
    assert raised.value.code is ErrorCode.DECODE_FAILED


class ForgetfulError(JobError):
    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (
            JobError("decode_failed", "no", retryable=False),  # type: ignore[arg-type]  # the mistake
            "raised a JobError whose code is str, not ErrorCode",
        ),
        (
            JobError(ErrorCode.DECODE_FAILED, KeyError("no")),  # type: ignore[arg-type]  # ditto
            "raised a JobError whose message is KeyError, not str",
        ),
        (ForgetfulError(), "raised a ForgetfulError whose code is NoneType, not ErrorCode"),
    ],
)
def test_a_job_error_that_no_job_can_end_with_is_the_providers_fault(
    error: JobError, problem: str
) -> None:
    plugins = Plugins()
    plugins.register(Gives(error), "guilty")
    with pytest.raises(PluginError) as raised:
        sample(plugins)
    assert str(raised.value) == f"plugin 'guilty' failed in sample_frames: TypeError: {problem}"


def test_observers_cannot_harm_each_other(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        @hookimpl
        def observe(self, event: Event) -> None:
            raise RuntimeError("observer down")

    plugins = Plugins()
    before, after = Gives(None), Gives(None)
    plugins.register(before, "before")
    plugins.register(Broken(), "broken")
    plugins.register(after, "after")
    event: Any = object()
    with caplog.at_level(logging.ERROR):
        plugins.notify("observe", event=event)
    assert before.heard == after.heard == [event]
    assert "'broken'" in caplog.text


def test_refuses_misspelt_hooks_wrappers_and_empty_plugins() -> None:
    class Misspelt:
        @hookimpl
        def sample_frame(self, media: Media) -> None: ...

    class Wrapper:
        @hookimpl(wrapper=True)
        def observe(self, event: Event) -> Any:
            return (yield)

    plugins = Plugins()
    for plugin in (Misspelt(), Wrapper(), object()):
        with pytest.raises((ValueError, Exception)):  # pluggy has its own class
            plugins.register(plugin, "bad")
    assert plugins.infos() == []
    plugins.notify("observe", event=None)  # nothing of them is left behind


def test_the_kit_takes_its_plugin_out_again() -> None:
    plugins = Plugins()
    with registered_plugin(plugins, Gives([FRAME])):
        assert sample(plugins) == [FRAME]
    assert sample(plugins) == []


GOOD = "from captioner import hookimpl\n@hookimpl\ndef observe(event): pass\n"


def test_a_broken_plugin_is_reported_and_the_others_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "a_broken_plugin", "import no_such_module_anywhere\n")
    install(tmp_path, "b_misspelt_plugin", GOOD.replace("def observe", "def obsserve"))
    install(tmp_path, "c_good_plugin", GOOD)
    install(tmp_path, "d_unwanted_plugin", GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins = load_plugins(PluginSettings(disabled=("d_unwanted_plugin",)))
    infos = {info.name: info for info in plugins.infos()}
    assert infos["a_broken_plugin"].state == "failed"
    assert "no_such_module_anywhere" in str(infos["a_broken_plugin"].error)
    assert infos["b_misspelt_plugin"].state == "failed"
    assert "obsserve" in str(infos["b_misspelt_plugin"].error)
    assert infos["c_good_plugin"].hooks == ("observe",)
    assert infos["c_good_plugin"].version == "1.2"
    assert infos["d_unwanted_plugin"].state == "disabled"
    assert infos["metrics"].state == "enabled"


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("class Odd(BaseException): pass\nraise Odd('no')\n", "Odd: no"),
    ],
)
def test_a_plugin_that_exits_when_imported_is_reported_and_the_others_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, problem: str
) -> None:
    install(tmp_path, "g_exiting_plugin", code)
    monkeypatch.syspath_prepend(str(tmp_path))
    infos = {info.name: info for info in load_plugins(PluginSettings()).infos()}
    assert infos["g_exiting_plugin"].state == "failed"
    assert infos["g_exiting_plugin"].error == problem
    assert infos["metrics"].state == "enabled"


def test_ctrl_c_while_plugins_load_is_for_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "h_interrupted_plugin", "raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        load_plugins(PluginSettings())


def test_only_the_enabled_ones_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "e_good_plugin", GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    infos = load_plugins(PluginSettings(enabled=("e_good_plugin",))).infos()
    assert {info.name: info.state for info in infos if info.state == "enabled"} == {
        "e_good_plugin": "enabled"
    }


@pytest.mark.parametrize("setting", ["enabled", "disabled"])
def test_a_name_that_no_plugin_has_is_one_clear_line(setting: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_plugins(PluginSettings.model_validate({setting: ("metrics", "webhooks")}))
    assert str(raised.value) == (
        f"CAPTIONER_PLUGINS__{setting.upper()} names 'webhooks', and no such plugin is installed; "
        "there are: webhook, alt_text, metrics, video"
    )


def test_a_named_plugin_that_cannot_be_loaded_is_only_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "f_broken_plugin", "import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    infos = load_plugins(PluginSettings(enabled=("f_broken_plugin", "metrics"))).infos()
    states = {info.name: info.state for info in infos}
    assert (states["f_broken_plugin"], states["metrics"]) == ("failed", "enabled")


def test_our_own_plugins_load_in_no_time() -> None:
    """Every process of a worker loads them, each decoder too."""
    program = (
        "import sys, captioner.settings, captioner.plugins as plugins\n"
        "loaded = plugins.load_plugins(captioner.settings.PluginSettings())\n"
        "assert {'webhook', 'video', 'metrics'} <= {one.name for one in loaded.infos()}\n"
        "heavy = {'sqlalchemy', 'httpx', 'celery', 'av', 'torch', 'cryptography'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    ended = run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr

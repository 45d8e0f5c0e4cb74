"""Finding plugins, and calling them without letting one harm another.

Entry points are loaded one by one: pluggy's own loader stops at the first that fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from captioner import hookspecs
from captioner.errors import JobError, PluginError, describe
from captioner.settings import PluginSettings

ENTRY_POINT_GROUP = "captioner.plugins"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One installed plugin and what became of it."""

    name: str
    #: Distribution and its version; empty for the ones inside captioner.
    distribution: str
    version: str
    #: `enabled`, `disabled` or `failed`.
    state: str
    hooks: tuple[str, ...] = ()
    #: Why it failed, in one line.
    error: str | None = None


class Plugins:
    """The plugins of one process."""

    def __init__(self) -> None:
        """Start with no plugin at all; `load_plugins` finds the installed ones."""
        self._manager = pluggy.PluginManager("captioner")
        self._manager.add_hookspecs(hookspecs)
        self._infos: dict[str, PluginInfo] = {}

    def register(
        self, plugin: object, name: str, *, distribution: str = "", version: str = ""
    ) -> None:
        """Add a plugin: a module or an object with hook implementations.

        Raises:
            ValueError: it implements no hook, an unknown one, or a wrapper.
        """
        self._manager.register(plugin, name=name)
        try:
            hooks = self._hooks_of(plugin)
        except Exception:
            self._manager.unregister(plugin)
            raise
        self._infos[name] = PluginInfo(name, distribution, version, "enabled", hooks)

    def unregister(self, name: str) -> None:
        """Take a plugin out again, as tests do."""
        self._manager.unregister(name=name)
        self._infos.pop(name, None)

    def _hooks_of(self, plugin: object) -> tuple[str, ...]:
        """Check what was registered; a misspelt hook is an error, not silence."""
        self._manager.check_pending()
        callers = self._manager.get_hookcallers(plugin) or []
        if not callers:
            raise ValueError("implements no hook; mark its functions with @captioner.hookimpl")
        for caller in callers:
            for implementation in caller.get_hookimpls():
                wrapper = implementation.wrapper or implementation.hookwrapper
                if implementation.plugin is plugin and wrapper:
                    raise ValueError(f"{caller.name}: wrappers are not supported")
        return tuple(sorted(caller.name for caller in callers))

    def reject(self, name: str, state: str, entry: EntryPoint, error: str | None = None) -> None:
        """Remember a plugin that does not run, so that the list can say why."""
        distribution, version = _distribution(entry)
        self._infos[name] = PluginInfo(name, distribution, version, state, (), error)

    def infos(self) -> list[PluginInfo]:
        """All plugins by name, those that do not run included."""
        return sorted(self._infos.values(), key=lambda info: info.name)

    def _implementations(self, hook: str) -> Iterator[tuple[str, Any]]:
        # pluggy keeps implementations in reverse order of calling.
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            yield implementation.plugin_name, implementation

    def stream(self, hook: str, *, check: Callable[[Any], None], **arguments: Any) -> Iterator[Any]:
        """Ask the providers of `hook` in order, and yield from the first result that is not None.

        Args:
            hook: name of a provider hook whose result can be iterated over.
            check: raises when an item is not what the hook asks for.
            arguments: the hook's own.

        Raises:
            PluginError: a plugin raised something other than these, or gave a wrong item.
            JobError: as raised by a plugin on purpose, such as `decode_failed`.
            MemoryError: whose fault that is nobody can tell.
        """
        for name, implementation in self._implementations(hook):
            try:
                result = implementation.function(*[arguments[a] for a in implementation.argnames])
                if result is not None:
                    for item in result:
                        check(item)
                        yield item
                    return
            except (JobError, MemoryError):
                raise
            except Exception as error:
                raise PluginError(name, hook, error) from error

    def first(self, hook: str, *, check: Callable[[Any], None], **arguments: Any) -> Any:
        """Ask the providers of `hook` in order for one thing; None when none of them has it.

        Args:
            hook: name of a provider hook.
            check: raises when a result is not what the hook asks for.
            arguments: the hook's own.

        Raises:
            PluginError: a plugin raised, or gave something wrong.
        """
        for name, implementation in self._implementations(hook):
            try:
                result = implementation.function(*[arguments[a] for a in implementation.argnames])
                if result is not None:
                    check(result)
                    return result
            except Exception as error:
                raise PluginError(name, hook, error) from error
        return None

    def notify(self, hook: str, **arguments: Any) -> None:
        """Tell every observer of `hook`; what one raises is logged with its name."""
        for name, implementation in self._implementations(hook):
            try:
                implementation.function(*[arguments[a] for a in implementation.argnames])
            except Exception:
                logger.exception("plugin %r failed in %s", name, hook, extra={"plugin": name})


def load_plugins(settings: PluginSettings) -> Plugins:
    """Register the installed plugins the settings allow; a broken one is reported and skipped."""
    plugins = Plugins()
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        allowed = settings.enabled is None or entry.name in settings.enabled
        if not allowed or entry.name in settings.disabled:
            plugins.reject(entry.name, "disabled", entry)
            continue
        distribution, version = _distribution(entry)
        try:
            plugins.register(entry.load(), entry.name, distribution=distribution, version=version)
        except Exception as error:  # noqa: BLE001  # a plugin may fail in any way
            problem = describe(error)
            plugins.reject(entry.name, "failed", entry, problem)
            logger.warning("plugin %r is not used: %s", entry.name, problem)
    return plugins


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist else ("", "")

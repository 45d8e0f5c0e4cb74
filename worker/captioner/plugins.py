"""Finding plugins, and calling them without letting one harm another.

Entry points are loaded one by one: pluggy's own loader stops at the first that fails.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from captioner import hookspecs
from captioner.errors import ErrorCode, JobError, PluginError, SettingsError, describe
from captioner.plugin_errors import PluginErrors
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
    #: `enabled`, `disabled` or `failed`; `absent`: it failed elsewhere and is not installed here.
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
        #: Asked for several times a job, and rarely changed.
        self._by_hook: dict[str, Sequence[tuple[str, Any]]] = {}
        #: The provider that each thread has asked, and for which hook.
        self._asked: dict[int, tuple[str, str]] = {}
        #: What they did wrong; of a provider, counted by who has the job that it failed.
        self.errors = PluginErrors()

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
        finally:
            # Last, or another thread would keep what was there before.
            self._by_hook.clear()
        self._infos[name] = PluginInfo(name, distribution, version, "enabled", hooks)

    def unregister(self, name: str) -> None:
        """Take a plugin out again, as tests do."""
        self._manager.unregister(name=name)
        self._by_hook.clear()
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

    def _implementations(self, hook: str) -> Sequence[tuple[str, Any]]:
        if hook not in self._by_hook:
            # pluggy keeps implementations in reverse order of calling.
            found = reversed(getattr(self._manager.hook, hook).get_hookimpls())
            self._by_hook[hook] = [(one.plugin_name, one) for one in found]
        return self._by_hook[hook]

    def implement(self, hook: str) -> bool:
        """True when one of them, at least, implements `hook`."""
        return bool(self._implementations(hook))

    def names(self, hook: str) -> list[str]:
        """Those that implement `hook`, in the order they are called."""
        return [name for name, _ in self._implementations(hook)]

    def call(self, plugin: str, hook: str, **arguments: Any) -> Any:
        """Call one plugin's hook; raises what that raises.

        Raises:
            LookupError: no plugin of this name, or it does not implement `hook`.
        """
        for name, implementation in self._implementations(hook):
            if name == plugin:
                return _call(implementation, arguments)
        raise LookupError(f"no plugin {plugin!r} with {hook} is installed and enabled here")

    def asked_by(self, thread: int) -> tuple[str, str] | None:
        """The provider and the hook that a thread waits for: what hangs, if it does."""
        return self._asked.get(thread)

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
            with _blamed(name, hook, self._asked):
                result = _call(implementation, arguments)
                if result is not None:
                    for item in result:
                        check(item)
                        yield item
                    return

    def first(self, hook: str, *, check: Callable[[Any], None], **arguments: Any) -> Any:
        """Ask the providers of `hook` in order for one thing; None when none of them has it.

        See `first_named`.
        """
        found = self.first_named(hook, check=check, **arguments)
        return found and found[1]

    def first_named(
        self, hook: str, *, check: Callable[[Any], None], **arguments: Any
    ) -> tuple[str, Any] | None:
        """Ask the providers of `hook` in order for one thing; None when none of them has it.

        Args:
            hook: name of a provider hook.
            check: raises when a result is not what the hook asks for.
            arguments: the hook's own.

        Returns:
            The plugin's name and its result.

        Raises:
            PluginError: a plugin raised something other than these, or gave something wrong.
            JobError: as raised by a plugin on purpose.
            MemoryError: whose fault that is nobody can tell.
        """
        for name, implementation in self._implementations(hook):
            with _blamed(name, hook, self._asked):
                result = _call(implementation, arguments)
                if result is not None:
                    check(result)
                    return name, result
        return None

    def chain(
        self,
        hook: str,
        link: str,
        value: Any,
        *,
        accept: Callable[[str, Any, Any], Any],
        **arguments: Any,
    ) -> Any:
        """Hand a value from one provider of `hook` to the next, and return what came of it.

        Args:
            hook: name of a provider hook.
            link: which of its arguments is the value.
            value: what the first one gets.
            accept: called with a plugin's name, the value it got, and its result where that is not
                None; gives the value of the next plugin, or raises when the result is wrong.
            arguments: the others.

        Raises:
            PluginError: as `first_named`.
            JobError: as `first_named`.
            MemoryError: as `first_named`.
        """
        for name, implementation in self._implementations(hook):
            with _blamed(name, hook, self._asked):
                result = _call(implementation, arguments | {link: value})
                if result is not None:
                    value = accept(name, value, result)
        return value

    def observers(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Callable[[], None]]]:
        """The observers of `hook` by name, each as a call that never raises."""
        for name, implementation in self._implementations(hook):
            yield name, functools.partial(self._tell, name, hook, implementation, arguments)

    def notify(self, hook: str, **arguments: Any) -> None:
        """Tell every observer of `hook` here and now; what one raises is logged with its name."""
        for _, call in self.observers(hook, **arguments):
            call()

    def _tell(
        self, name: str, hook: str, implementation: Any, arguments: Mapping[str, Any]
    ) -> None:
        try:
            _call(implementation, arguments)
        except BaseException as error:  # noqa: BLE001  # a plugin may fail in any way
            self.errors.report(name, hook, error)


def _call(implementation: Any, arguments: Mapping[str, Any]) -> Any:
    return implementation.function(*[arguments[name] for name in implementation.argnames])


#: A generator that is closed is no error, and Ctrl-C is for the command it interrupts.
_ON_PURPOSE = (MemoryError, GeneratorExit, KeyboardInterrupt)


class _blamed:  # noqa: N801  # used like a function
    """What a provider raises is its fault, unless it was raised on purpose."""

    __slots__ = ("_asked", "_hook", "_name")

    def __init__(self, name: str, hook: str, asked: dict[int, tuple[str, str]]) -> None:
        self._name = name
        self._hook = hook
        self._asked = asked

    def __enter__(self) -> None:
        self._asked[threading.get_ident()] = self._name, self._hook

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._asked.pop(threading.get_ident(), None)
        fault = None if error is None else _fault(error)
        if fault is not None:
            raise PluginError(self._name, self._hook, fault) from fault


def _fault(error: BaseException) -> BaseException | None:
    """What is to be blamed on who raised this; None: it was raised on purpose."""
    if not isinstance(error, JobError):
        return None if isinstance(error, _ON_PURPOSE) else error
    # A job could not end with one that was made wrongly.
    for name, kind in (("code", ErrorCode), ("message", str)):
        value = getattr(error, name, None)
        if not isinstance(value, kind):
            fault = TypeError(
                f"raised a {type(error).__name__} whose {name} is {type(value).__name__}, "
                f"not {kind.__name__}"
            )
            return fault.with_traceback(error.__traceback__)
    return None


def load_plugins(settings: PluginSettings) -> Plugins:
    """Register the installed plugins the settings allow; a broken one is reported and skipped.

    Raises:
        SettingsError: the settings name one that is not installed, as a misspelt name does: what it
            was to do would be left undone without a word.
    """
    plugins = Plugins()
    entries = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name)
    installed = [entry.name for entry in entries]
    _check_names("ENABLED", settings.enabled or (), installed)
    _check_names("DISABLED", settings.disabled, installed)
    for entry in entries:
        allowed = settings.enabled is None or entry.name in settings.enabled
        if not allowed or entry.name in settings.disabled:
            plugins.reject(entry.name, "disabled", entry)
            continue
        distribution, version = _distribution(entry)
        try:
            plugins.register(entry.load(), entry.name, distribution=distribution, version=version)
        except KeyboardInterrupt:
            raise  # Ctrl-C is for the command
        except BaseException as error:  # noqa: BLE001  # a plugin may fail in any way, and may exit
            problem = describe(error)
            plugins.reject(entry.name, "failed", entry, problem)
            logger.warning("plugin %r is not used: %s", entry.name, problem)
    return plugins


def _check_names(setting: str, names: Collection[str], installed: Sequence[str]) -> None:
    for name in names:
        if name not in installed:
            close = get_close_matches(name, installed)
            others = dict.fromkeys([*close, *installed])
            raise SettingsError(
                f"CAPTIONER_PLUGINS__{setting} names {name!r}, and no such plugin is installed; "
                f"there are: {', '.join(others) or 'none'}"
            )


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist else ("", "")

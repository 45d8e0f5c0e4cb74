"""What plugins did wrong: logged with their names, counted, and kept until it is written to SQL."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from captioner.errors import describe

#: One plugin's one hook is logged at most this often: it may fail a thousand times a second.
LOG_SECONDS = 60.0
MAX_ERROR_CHARACTERS = 500

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PluginErrorCount:
    """How often one hook of one plugin failed, and how it did last."""

    plugin: str
    hook: str
    errors: int
    #: One line.
    last_error: str
    last_at: datetime

    def plus(self, other: PluginErrorCount) -> PluginErrorCount:
        """Both together."""
        newer = max(self, other, key=lambda count: count.last_at)
        return replace(newer, errors=self.errors + other.errors)


class PluginErrors:
    """The one place a process tells of plugins that fail. Thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with none. `clock` gives seconds since any moment."""
        self._clock = clock
        self._lock = threading.Lock()
        self._totals: dict[tuple[str, str], int] = {}
        self._unwritten: dict[tuple[str, str], PluginErrorCount] = {}
        #: When each was logged last, and how many were not since.
        self._logged: dict[tuple[str, str], tuple[float, int]] = {}

    def report(self, plugin: str, hook: str, error: BaseException | str) -> None:
        """Count a failure, and log it unless the same hook's last one was just now.

        Args:
            plugin: its name.
            hook: which of its hooks failed.
            error: what it raised, or what it did wrong, in one line.
        """
        text = error if isinstance(error, str) else describe(error)
        text = text[:MAX_ERROR_CHARACTERS].replace("\x00", "\N{REPLACEMENT CHARACTER}")
        text = text.encode(errors="replace").decode()  # half a pair of surrogates is no UTF-8
        count = PluginErrorCount(plugin, hook, 1, text, datetime.now(UTC))
        with self._lock:
            self._totals[plugin, hook] = self._totals.get((plugin, hook), 0) + 1
            self._add(count)
            unlogged = self._unlogged(plugin, hook)
        if unlogged is None:
            return
        more = f" (and {unlogged} times more since it was logged last)" if unlogged else ""
        logger.error(
            "plugin %r failed in %s%s: %s",
            plugin,
            hook,
            more,
            text,
            exc_info=error if isinstance(error, BaseException) else None,
            extra={"plugin": plugin},
        )

    def totals(self) -> Mapping[tuple[str, str], int]:
        """Failures since the process began, by plugin and hook."""
        with self._lock:
            return dict(self._totals)

    def add(self, counts: Iterable[PluginErrorCount]) -> None:
        """Count what another process of this worker has counted, and logged."""
        with self._lock:
            for count in counts:
                key = count.plugin, count.hook
                self._totals[key] = self._totals.get(key, 0) + count.errors
                self._add(count)

    def take(self) -> list[PluginErrorCount]:
        """What has been counted since the last call; `put_back` what could not be written."""
        with self._lock:
            taken, self._unwritten = list(self._unwritten.values()), {}
        return taken

    def put_back(self, counts: Iterable[PluginErrorCount]) -> None:
        """Keep counts for the next `take`."""
        with self._lock:
            for count in counts:
                self._add(count)

    def _add(self, count: PluginErrorCount) -> None:
        key = count.plugin, count.hook
        earlier = self._unwritten.get(key)
        self._unwritten[key] = earlier.plus(count) if earlier else count

    def _unlogged(self, plugin: str, hook: str) -> int | None:
        """How many were not logged since the last line; None: this one is not, either."""
        now = self._clock()
        at, unlogged = self._logged.get((plugin, hook), (None, 0))
        if at is not None and now - at < LOG_SECONDS:
            self._logged[plugin, hook] = at, unlogged + 1
            return None
        self._logged[plugin, hook] = now, 0
        return unlogged

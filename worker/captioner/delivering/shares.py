"""How much each target may have at once, so that no number of dead ones holds up the others.

Threads that wait for a slow target are set aside, and others take their places. That has an end:
targets that fail have half of the threads at most, all together, and take turns.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sized

from captioner.deliveries import Target
from captioner.delivering.health import Health
from captioner.settings import EventSettings

#: Deliveries to one target that a thread makes one after the other: few statements for many.
CHAIN = 16
#: A thread that has been at one delivery for so long is set aside, as many times as many as run.
SLOW_SECONDS = 1.0
ASIDE_FACTOR = 4
#: A plugin that so many threads have not come back from gets no more until one has, but for
#: targets that are well; with those, too, it gets none beyond so many times as many.
MOST_LEFT = 8
MOST_LEFT_FACTOR = 4


class Shares:
    """What one dispatcher allows its targets. For one thread."""

    def __init__(self, settings: EventSettings, health: Health) -> None:
        """`health` is what the dispatcher knows of them."""
        self._settings = settings
        self._health = health
        self.most_aside = ASIDE_FACTOR * settings.threads
        self._most_failing = max(1, settings.threads // 2)

    def chains(self, key: Target, running: int) -> int:
        """How many more chains a target may have: one in all if it fails, or is not known."""
        most = self._settings.per_target_in_flight if key in self._health.well else 1
        return max(0, most - running)

    def room(self, running: Mapping[Target, Sized]) -> dict[Target, int]:
        """How many more deliveries each target may have; one that is not there may have `CHAIN`.

        Args:
            running: the chains of each target that has any.
        """
        room = {
            key: self.chains(key, len(running.get(key, ()))) * CHAIN
            for key in (*running, *self._health.well)
        }
        failing = self._health.failing
        places = self._most_failing - sum(key in failing for key in running)
        for key in failing:
            free = key not in running and places > 0
            places -= free
            room[key] = int(free)
        return room

    def without(self, left: Mapping[str, int]) -> dict[str, Collection[str | None]]:
        """Plugins that get no more, and their targets that do.

        Args:
            left: how many threads each plugin has not returned from.
        """
        return {
            plugin: ()
            if count >= MOST_LEFT * MOST_LEFT_FACTOR
            else [target for name, target in self._health.well if name == plugin]
            for plugin, count in left.items()
            if count >= MOST_LEFT
        }

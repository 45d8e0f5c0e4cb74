"""Targets whose last attempt failed: they are tried one at a time, and logged once."""

from __future__ import annotations

import logging

from captioner.deliveries import AttemptEnd, Target
from captioner.events import DeliveryState

#: Remembered; beyond that the one that has failed longest is taken for well.
MOST_TARGETS = 1_000

logger = logging.getLogger(__name__)


class Failing:
    """What one dispatcher knows of its targets."""

    def __init__(self) -> None:
        """All are well."""
        self.targets: dict[Target, None] = {}

    def note(self, end: AttemptEnd) -> None:
        """Learn from how an attempt ended; a line in the log when that is news."""
        delivery = end.delivery
        named = {"plugin": delivery.plugin, "target": delivery.target, "delivery": delivery.id}
        if end.state is DeliveryState.DELIVERED:
            if delivery.key in self.targets:
                del self.targets[delivery.key]
                logger.info("a target that failed takes deliveries again", extra=named)
        elif delivery.key not in self.targets:
            if len(self.targets) >= MOST_TARGETS:
                del self.targets[next(iter(self.targets))]
            self.targets[delivery.key] = None
            logger.warning(
                "a delivery failed, and others to this target wait for each other now: %s",
                end.error,
                extra=named,
            )

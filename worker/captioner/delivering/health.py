"""What a dispatcher knows of its targets: which are well, and which fail.

A target that fails is tried one delivery at a time, and logged once. So is one that nothing is
known of, until it has taken something.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from captioner.deliveries import AttemptEnd, Target
from captioner.events import DeliveryState

#: Remembered of each kind; beyond that those known longest are forgotten.
MOST_TARGETS = 1_000

logger = logging.getLogger(__name__)


class Health:
    """What one dispatcher knows of its targets."""

    def __init__(self) -> None:
        """Nothing is known of any."""
        #: Their last attempt failed; those that have waited longest for another come first.
        self.failing: dict[Target, None] = {}
        #: Their last attempt did not.
        self.well: dict[Target, None] = {}

    def note(self, end: AttemptEnd) -> None:
        """Learn from how an attempt ended; a line in the log when that is news."""
        delivery = end.delivery
        named = {"plugin": delivery.plugin, "target": delivery.target, "delivery": delivery.id}
        if end.state is DeliveryState.DELIVERED:
            if delivery.key in self.failing:
                del self.failing[delivery.key]
                logger.info("a target that failed takes deliveries again", extra=named)
            _put_last(self.well, delivery.key)
            return
        if delivery.key not in self.failing:
            logger.warning(
                "a delivery failed, and others to this target wait for each other now: %s",
                end.error,
                extra=named,
            )
        self.well.pop(delivery.key, None)
        _put_last(self.failing, delivery.key)

    def put_behind(self, targets: Collection[Target]) -> None:
        """Let others that fail go before these: they had their turn."""
        for target in targets:
            if target in self.failing:
                _put_last(self.failing, target)


def _put_last(targets: dict[Target, None], target: Target) -> None:
    targets.pop(target, None)
    if len(targets) >= MOST_TARGETS:
        del targets[next(iter(targets))]
    targets[target] = None

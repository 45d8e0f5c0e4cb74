"""When a delivery that failed is tried again."""

from __future__ import annotations

import random
from collections.abc import Sequence

#: Each pause is up to a fifth shorter or longer, so that what failed together does not come back
#: together.
JITTER = 0.2
#: Of what a plugin asks for.
MAX_RETRY_AFTER_SECONDS = 86_400.0


def pause_seconds(
    failures: int, delays_seconds: Sequence[float], retry_after_seconds: float | None = None
) -> float | None:
    """How long to wait before the next attempt; None: there is none.

    Args:
        failures: attempts that failed, the last one included.
        delays_seconds: the pause after each of them.
        retry_after_seconds: the pause is not shorter than this, up to a day.
    """
    if failures > len(delays_seconds):
        return None
    pause = delays_seconds[failures - 1] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  # no secret
    return max(pause, min(retry_after_seconds or 0.0, MAX_RETRY_AFTER_SECONDS))

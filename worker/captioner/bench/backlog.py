"""Filling a worker's queue behind its back, so that publishing is in nobody's time.

Messages gather in a list of another name, which is then renamed: the worker finds all of them at
once.
"""

from __future__ import annotations

import redis

from captioner.settings import Settings

#: Between an installation's key prefix and the name of a queue that is being filled.
FILLING = "filling:"


def filling(settings: Settings) -> Settings:
    """Settings to publish with; the worker of the given ones does not see what is published."""
    prefix = f"{settings.broker.key_prefix}{FILLING}"
    return with_prefix(settings, prefix)


def with_prefix(settings: Settings, prefix: str) -> Settings:
    """The same settings with another key prefix."""
    broker = settings.broker.model_copy(update={"key_prefix": prefix})
    return settings.model_copy(update={"broker": broker})


class Queue:
    """One queue of one worker."""

    def __init__(self, client: redis.Redis, settings: Settings, name: str) -> None:
        """`settings` are the worker's."""
        self._client = client
        self._key = f"{settings.broker.key_prefix}{name}"
        self._filled = f"{settings.broker.key_prefix}{FILLING}{name}"

    def open(self) -> None:
        """Let the worker have what was published."""
        self._client.rename(self._filled, self._key)

    def __len__(self) -> int:
        """How many messages it has not taken."""
        length: int = self._client.llen(self._key)
        return length

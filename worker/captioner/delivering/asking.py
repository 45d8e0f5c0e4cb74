"""Asking plugins whom an event is for."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from uuid import UUID

from captioner.domain import Job
from captioner.errors import InvalidRequestError
from captioner.events import MAX_TARGET_CHARACTERS, Event
from captioner.plugins import Plugins
from captioner.store import Store

HOOK = "event_targets"
#: One plugin's for one event.
MAX_TARGETS = 1_000


def ask_targets(
    plugins: Plugins, plugin: str, event: Event, job: Job, store: Store
) -> tuple[str, ...]:
    """The targets one plugin names, each once, in its order; raises what the plugin raises.

    Raises:
        TypeError: it gave something else than texts.
        ValueError: a text cannot be a target, or there are too many.
    """
    given: object = plugins.call(plugin, HOOK, event=event, job=job, store=store)
    if given is None:
        return ()
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise TypeError(f"gave {type(given).__name__} instead of an iterable of targets")
    targets: dict[str, None] = {}
    for target in given:
        targets[_checked(target)] = None
        if len(targets) > MAX_TARGETS:
            raise ValueError(f"gave more than {MAX_TARGETS} targets for one event")
    return tuple(targets)


def _checked(target: object) -> str:
    if not isinstance(target, str):
        raise TypeError(f"gave {type(target).__name__} as a target, not a text")
    if not 0 < len(target) <= MAX_TARGET_CHARACTERS or not target.isprintable():
        raise ValueError(
            f"a target must be a printable text of 1 to {MAX_TARGET_CHARACTERS} characters"
        )
    return target


def jobs_of(store: Store, ids: Collection[UUID]) -> dict[UUID, Job]:
    """The jobs with these ids, without those that another version wrote and this cannot read."""
    try:
        return {job.id: job for job in store.get_many(ids)}
    except InvalidRequestError:
        if len(ids) == 1:
            return {}
    return {job_id: job for one in ids for job_id, job in jobs_of(store, [one]).items()}

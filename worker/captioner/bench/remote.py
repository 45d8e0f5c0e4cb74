"""Celery's remote control: asking a worker, and what a worker that imports this can be asked."""

from __future__ import annotations

import dataclasses
from typing import Any

from celery import Celery
from celery.worker.control import inspect_command

ANSWER_SECONDS = 30.0


@inspect_command()
def engine_stats(state: Any) -> dict[str, Any]:
    """`EngineStats` of this worker, by name."""
    return dataclasses.asdict(state.app.service.engine_stats)


def ask(
    app: Celery,
    hostname: str,
    command: str,
    *,
    timeout_seconds: float = ANSWER_SECONDS,
    **arguments: Any,
) -> Any | None:
    """What a worker answers to a command, or None when it does not in time."""
    answers = app.control.broadcast(
        command,
        arguments=arguments,
        reply=True,
        destination=[hostname],
        timeout=timeout_seconds,
        limit=1,
    )
    return answers[0][hostname] if answers else None

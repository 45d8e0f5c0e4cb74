"""What each remote-control command may be given.

Celery hands the arguments on as they are. An error in a command's own lines costs a traceback, but
some are used later, by the loop that takes messages, where a wrong one ends the worker.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from captioner.broker.envelope import MAX_HEADER_CHARACTERS, MAX_NUMBER, MalformedError

#: Threads by which a pool may grow at once, and most of whatever else is counted.
MAX_COUNT = 1_024

_RATE = re.compile(r"(\d{1,9}(\.\d{1,9})?(/[smh])?)?", re.ASCII)


def _is_nothing(value: object) -> bool:
    return value is None


def _is_flag(value: object) -> bool:
    """Whatever is taken for true or false: Flower sends 1."""
    return value is None or isinstance(value, bool | int | float | str)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_HEADER_CHARACTERS and value.isprintable()


def _may_be_name(value: object) -> bool:
    return value is None or _is_name(value)


def _are_names(value: object) -> bool:
    """One or several."""
    return _is_name(value) or (isinstance(value, list) and all(map(_is_name, value)))


def _may_be_list_of_names(value: object) -> bool:
    """Not one name, which would be taken for a list of its letters."""
    return value is None or (isinstance(value, list) and _are_names(value))


def _are_revoked(value: object) -> bool:
    """Ids that another worker has revoked: keys of an object count, and nothing else of it."""
    return _may_be_list_of_names(list(value) if isinstance(value, dict) else value)


def _are_stamps(value: object) -> bool:
    """Names with one value or several, or a list of `name=value`."""
    if isinstance(value, dict):
        return all(map(_is_name, value)) and all(map(_are_names, value.values()))
    return isinstance(value, list) and all(_is_name(one) and "=" in one for one in value)


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_COUNT


def _may_be_count(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value <= MAX_COUNT)


def _may_be_seconds(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and 0 <= value < MAX_NUMBER)


def _is_rate(value: object) -> bool:
    """Messages per second, minute or hour; 0 and nothing: any number of them."""
    if isinstance(value, str):
        return bool(_RATE.fullmatch(value))
    # Whoever waits for the next message computes with the inverse.
    return value in (None, 0) or (isinstance(value, int | float) and 1e-9 < value < MAX_NUMBER)


def _is_signal(value: object) -> bool:
    if isinstance(value, str):
        return value.isupper() and f"SIG{value.removeprefix('SIG')}" in signal.Signals.__members__
    return value is None or type(value) is int


#: The names and kinds of what Celery's own commands may be given.
_ARGUMENTS: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "active": {"safe": _is_flag},
    "active_queues": {},
    "add_consumer": {
        "queue": _is_name,
        "exchange": _may_be_name,
        "exchange_type": _may_be_name,
        "routing_key": _may_be_name,
    },
    "autoscale": {"max": _may_be_count, "min": _may_be_count},
    "cancel_consumer": {"queue": _is_name},
    "clock": {},
    "conf": {"with_defaults": _is_flag},
    "disable_events": {},
    "enable_events": {},
    "heartbeat": {},
    "hello": {"from_node": _is_name, "revoked": _are_revoked},
    "memdump": {"samples": _is_count},
    "memsample": {},
    "objgraph": {"num": _is_count, "max_depth": _is_count, "type": _is_name},
    "ping": {},
    "pool_grow": {"n": _is_count},
    "pool_restart": {
        "modules": _may_be_list_of_names,
        "reload": _is_flag,
        "reloader": _is_nothing,
    },
    "pool_shrink": {"n": _is_count},
    "query_task": {"ids": _are_names},
    "rate_limit": {"task_name": _is_name, "rate_limit": _is_rate},
    "registered": {"taskinfoitems": _may_be_list_of_names, "builtins": _is_flag},
    "report": {},
    "reserved": {},
    "revoke": {"task_id": _are_names, "terminate": _is_flag, "signal": _is_signal},
    "revoke_by_stamped_headers": {
        "headers": _are_stamps,
        "terminate": _is_flag,
        "signal": _is_signal,
    },
    "revoked": {},
    "scheduled": {},
    "shutdown": {"msg": _is_name},
    "stats": {},
    "terminate": {"signal": _is_signal, "task_id": _are_names},
    "time_limit": {"task_name": _is_name, "hard": _may_be_seconds, "soft": _may_be_seconds},
}
#: What they were called once, and still are by clients.
_OLD_NAMES = {
    "dump_active": "active",
    "dump_conf": "conf",
    "dump_reserved": "reserved",
    "dump_revoked": "revoked",
    "dump_schedule": "scheduled",
    "dump_tasks": "registered",
}


def check_command(method: str, arguments: Mapping[str, Any]) -> None:
    """Check that there is such a command, and that it can use what it is given.

    A site's own commands are theirs to check.

    Raises:
        MalformedError: it cannot.
    """
    from celery.worker.control import Panel  # no producer needs it

    if method == "election":
        raise MalformedError("captioner's workers elect nobody")
    handler = Panel.data.get(method)
    if handler is None:
        raise MalformedError("there is no such command")
    checks = _ARGUMENTS.get(_OLD_NAMES.get(method, method))
    if checks is None:
        return
    if arguments.keys() - checks.keys():
        raise MalformedError(f"{method} was given an argument it does not have")
    for name, value in arguments.items():
        if not checks[name](value):
            raise MalformedError(f"{method} cannot use the {name} it was given")
    try:
        signature(handler).bind(None, **arguments)
    except TypeError:
        raise MalformedError(f"{method} lacks an argument") from None

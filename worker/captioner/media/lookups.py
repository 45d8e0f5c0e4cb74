"""Names to addresses, within a time limit and in a bounded number of threads.

getaddrinfo knows no time limit and cannot be interrupted: whoever waits for it goes on without it,
and its thread ends when the system's resolver gives up. Were there no bound, names whose servers
never answer would pile up threads.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import httpcore

if TYPE_CHECKING:
    from captioner.media.network import Deadline

#: Gives the addresses of a host and port, best first. Connections go to these addresses as they
#: are, with no second look-up: the place to refuse one is here, by raising PermissionError.
Resolver = Callable[[str, int], Sequence[str]]

#: Of a process at once, those that nobody waits for any more included. More than there are jobs and
#: deliveries at once by default, so that honest names seldom wait for hostile ones.
MAX_LOOK_UPS = 256
_turns = threading.BoundedSemaphore(MAX_LOOK_UPS)


def resolve_host(host: str, port: int) -> list[str]:
    """Every address the system knows for a host, in its order of preference."""
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def resolve_within(deadline: Deadline, resolve: Resolver, host: str, port: int) -> Sequence[str]:
    """What `resolve` gives, or `httpcore.ConnectTimeout` when the deadline is first.

    Raises:
        httpcore.TimeoutException: it took too long, or too many others do.
        httpcore.ConnectError: the name cannot be resolved, or an address is refused.
    """
    turns, answer = _turns, SimpleQueue[Sequence[str] | Exception]()

    def look_up() -> None:
        try:
            answer.put(resolve(host, port))
        except Exception as error:  # noqa: BLE001 (raised again in the waiting thread)
            answer.put(error)
        finally:
            turns.release()

    if not turns.acquire(timeout=deadline.remaining()):
        raise httpcore.ConnectTimeout("too many names are being resolved")
    try:
        # A daemon: it holds up nobody at the end of the process.
        threading.Thread(target=look_up, name="captioner-resolve", daemon=True).start()
    except BaseException:
        turns.release()
        raise
    try:
        found = answer.get(timeout=deadline.remaining())
    except Empty:
        raise httpcore.ConnectTimeout("the name was not resolved in time") from None
    if isinstance(found, OSError | ValueError):  # UnicodeError is a ValueError
        raise httpcore.ConnectError(found) from found
    if isinstance(found, Exception):
        raise found
    return found

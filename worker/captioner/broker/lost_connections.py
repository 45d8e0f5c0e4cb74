"""What is left of a lost connection to the broker, put away without touching anybody else's."""

from __future__ import annotations

import contextlib
from typing import Any


class PutsAway:
    """For transports of kombu: a lost connection leaves the process's other sockets alone.

    `kombu.Connection.collect`, which Celery calls then, gives every socket that any thread makes
    meanwhile a timeout (kombu's issue 838), unless the transport does the work itself. A plugin's
    socket would stop waiting after a few seconds. Those to Redis have timeouts of their own.
    """

    def _collect(self: Any, connection: Any) -> None:
        """Called with the connection, or None; what else goes wrong with it is no news."""
        errors = (*self.connection_errors, *self.channel_errors, AttributeError, OSError)
        with contextlib.suppress(*errors):
            self.close_connection(connection)

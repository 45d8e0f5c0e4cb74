"""The embedded broker: kombu's SQLAlchemy transport on a SQLite file of its own.

It is polled often enough that a person does not notice.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from queue import Empty
from typing import Any

from celery.worker import state as worker_state
from kombu.transport import sqlalchemy as sqlalchemy_transport

from captioner.broker.lost_connections import PutsAway
from captioner.broker.open_queues import open_queues
from captioner.errors import BrokerUnavailableError
from captioner.private_files import make_private_file, make_private_folder

EMBEDDED_PREFIX = "sqla+sqlite:///"
#: How often who waits for a message looks whether the worker shall end.
LOOK_SECONDS = 0.2


class EmbeddedChannel(sqlalchemy_transport.Channel):
    """A channel that takes messages only from queues that are open.

    It looks into a queue that was empty only when something has been written since: a look is a
    transaction that nobody may write beside, and twenty a second took a fifth of a core.
    """

    _watch: sqlite3.Connection | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """As kombu's own."""
        super().__init__(*arguments, **options)
        #: How far the file was when a queue was found empty.
        self._empty_at: dict[str, int] = {}

    def _get(self, queue: str, timeout: Any = None) -> Any:  # noqa: ARG002  # kombu's
        if queue not in open_queues.among(self._active_queues):
            raise Empty
        version = self._version()
        if self._empty_at.get(queue) == version:
            raise Empty
        try:
            return super()._get(queue)
        except Empty:
            self._empty_at[queue] = version
            raise

    def _version(self) -> int:
        """Another number whenever somebody may have written to the broker's file since."""
        url = self.session.bind.url
        if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
            return time.monotonic_ns()  # no file to watch
        try:
            if self._watch is None:
                self._watch = sqlite3.connect(url.database, check_same_thread=False)
            (version,) = self._watch.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:
            self._stop_watching()
            return time.monotonic_ns()  # let kombu look, and say what is wrong
        return int(version)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def close(self) -> None:
        """As kombu's own."""
        self._stop_watching()
        super().close()


class EmbeddedTransport(PutsAway, sqlalchemy_transport.Transport):
    """The SQLAlchemy transport, asking for new messages 20 times a second instead of once.

    The interval cannot be given as a transport option: this transport hands those to SQLAlchemy.
    """

    polling_interval = 0.05
    Channel = EmbeddedChannel

    def drain_events(self, connection: Any, timeout: Any = None, **_: Any) -> None:
        """Deliver a message; of the time that it may wait none is left once the worker shall end.

        Celery's loop for such transports waits twice two seconds after it was told to.
        """
        give_up = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                super().drain_events(connection, timeout=LOOK_SECONDS)
            except TimeoutError:
                late = give_up is not None and time.monotonic() >= give_up
                if late or worker_state.should_stop is not None:
                    raise
            else:
                return


def prepare_embedded_broker(url: str) -> None:
    """Create the embedded broker's file in WAL mode, so that readers never block a publisher.

    Raises:
        BrokerUnavailableError: the file cannot be made; the text says where.
    """
    if not url.startswith(EMBEDDED_PREFIX):
        return
    path = Path(url.removeprefix(EMBEDDED_PREFIX))
    try:
        make_private_folder(path.parent)
        make_private_file(path)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    except (OSError, sqlite3.Error) as error:
        raise BrokerUnavailableError(
            f"the embedded broker {path} cannot be opened: {error}; see CAPTIONER_DATA_DIR"
        ) from error


_DELETE = """
    DELETE FROM kombu_message
    WHERE id IN (SELECT id FROM kombu_message WHERE visible = 0 LIMIT ?)
"""


def delete_delivered(url: str, limit: int) -> int:
    """Delete delivered messages, which kombu keeps; how many, at most `limit`.

    Args:
        url: of the broker; another kind keeps none, and nothing is done.
        limit: bounds the transaction.
    """
    if not url.startswith(EMBEDDED_PREFIX):
        return 0
    path = url.removeprefix(EMBEDDED_PREFIX)
    with contextlib.closing(sqlite3.connect(path, timeout=10.0)) as connection, connection:
        if not connection.execute(
            "SELECT 1 FROM sqlite_master WHERE name = 'kombu_message'"
        ).fetchone():
            return 0  # nobody has published yet
        return connection.execute(_DELETE, (limit,)).rowcount

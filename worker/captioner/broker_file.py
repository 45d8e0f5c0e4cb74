"""The embedded broker's file, which keeps delivered messages until somebody deletes them."""

from __future__ import annotations

import contextlib
import sqlite3

from captioner.transport import EMBEDDED_PREFIX

_DELETE = """
    DELETE FROM kombu_message
    WHERE id IN (SELECT id FROM kombu_message WHERE visible = 0 LIMIT ?)
"""


def delete_delivered(url: str, limit: int) -> int:
    """Delete delivered messages from the embedded broker; how many, at most `limit`.

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

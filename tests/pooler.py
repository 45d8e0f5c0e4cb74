"""A private PgBouncer for the tests: one on a free port of the loopback interface."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import ClassVar

import pytest

from servers import PostgresServer, Server, connect

_CONFIG = """
[databases]
postgres = host=127.0.0.1 port={server} pool_size={size}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = plain
auth_file = {folder}/users
pool_mode = transaction
"""


class PgBouncer(Server):
    """Lends out a few connections of a server, each for one transaction."""

    name = "PgBouncer"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT
    abrupt_signal: ClassVar[signal.Signals] = signal.SIGKILL

    def __init__(self, behind: PostgresServer, *, size: int) -> None:
        """Skips the test on a machine without the program, which comes in no wheel."""
        # Where Debian puts it, and where the PATH of an ordinary user does not lead.
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
        program = shutil.which("pgbouncer", path=path)
        if program is None:
            pytest.skip("no pgbouncer: install Debian's package pgbouncer")
        super().__init__()
        self.program = Path(program)
        self.behind = behind
        self.size = size

    @property
    def url(self) -> str:
        return self.behind.url.replace(f":{self.behind.port}/", f":{self.port}/")

    def command(self) -> list[str | Path]:
        users, config = self.folder / "users", self.folder / "config"
        users.write_text(f'"{self.behind.user}" "{self.behind.password}"\n')
        config.write_text(
            _CONFIG.format(
                server=self.behind.port, size=self.size, port=self.port, folder=self.folder
            )
        )
        return [self.program, config]

    def ping(self) -> None:
        connect(self.url).close()

"""A private Redis Sentinel that watches a private Redis."""

from __future__ import annotations

from pathlib import Path

from servers import RedisServer, free_port


class RedisSentinel(RedisServer):
    """Tells clients where `master` is, under the name `mymaster`; see `RedisServer`.

    It gives a master that is silent for a second up for a replica, where there is one.
    """

    name = "Redis Sentinel"

    def __init__(self, master: RedisServer) -> None:
        super().__init__()
        self._master = master
        self._away = free_port()

    def new_database(self) -> str:
        """The URL by which clients find the master; it is the same each time.

        It names another sentinel first, which is away, as one of several may be.
        """
        return f"sentinel://127.0.0.1:{self._away}/0;sentinel://127.0.0.1:{self.port}/0"

    def command(self) -> list[str | Path]:
        configuration = self.folder / "sentinel.conf"
        configuration.write_text(
            f"port {self.port}\n"
            "bind 127.0.0.1\n"
            f"dir {self.folder}\n"
            f"sentinel monitor mymaster 127.0.0.1 {self._master.port} 1\n"
            "sentinel down-after-milliseconds mymaster 1000\n"
            "sentinel failover-timeout mymaster 10000\n"
        )
        configuration.chmod(0o666)  # it keeps what it learns there, as another user
        return [self.program, configuration, "--sentinel"]

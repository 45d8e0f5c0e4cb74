"""Migrations on both databases: up, down and up again, equal to the models, by many at once."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from captioner.domain import CaptionRequest
from captioner.errors import SchemaError
from captioner.source import Source
from captioner.store import Store, create_store_engine, current, head, require_current, upgrade
from captioner.store.models import Base
from captioner.store.schema import alembic_config, downgrade, migrating

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

REPOSITORY = Path(__file__).parents[2]
#: The next one adds columns to the table of jobs.
BEFORE_FRAMES = "c2a97e5d4b18"


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_store_engine(database_url)
    yield engine
    engine.dispose()


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names()) - {"alembic_version"}


def set_revision(engine: Engine, revision: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :r"), {"r": revision})


def test_there_is_one_head() -> None:
    scripts = ScriptDirectory.from_config(alembic_config())
    assert scripts.get_heads() == [head()]


def test_every_revision_goes_up_down_and_up_again(engine: Engine) -> None:
    scripts = ScriptDirectory.from_config(alembic_config())
    for script in reversed(list(scripts.walk_revisions())):
        upgrade(engine, script.revision)
        downgrade(engine, "-1")
        upgrade(engine, script.revision)
        assert current(engine) == script.revision
    assert tables(engine) == set(Base.metadata.tables)
    downgrade(engine)
    assert tables(engine) == set()
    assert current(engine) is None


def test_models_and_migrations_agree(engine: Engine) -> None:
    upgrade(engine)
    with migrating(engine) as connection:
        command.check(alembic_config(connection))


def test_what_alembic_does_not_compare_agrees_too(engine: Engine) -> None:
    """CHECK constraints and the conditions of partial indexes, in migrations and in models."""
    upgrade(engine)
    migrated = constraints(engine)
    downgrade(engine)
    Base.metadata.create_all(engine)
    assert constraints(engine) == migrated


def constraints(engine: Engine) -> dict[str, list[tuple[str, ...]]]:
    found = inspect(engine)
    result = {}
    for table in sorted(tables(engine)):
        checks = [
            (str(one["name"]), "".join(one["sqltext"].split()))
            for one in found.get_check_constraints(table)
        ]
        indexes = [
            (
                str(one["name"]),
                *map(str, one["column_names"]),
                *(f"{key}={value}" for key, value in one.get("dialect_options", {}).items()),
            )
            for one in found.get_indexes(table)
        ]
        result[table] = sorted(checks) + sorted(indexes)
    return result


def test_an_upgrade_of_a_current_database_changes_nothing(engine: Engine) -> None:
    upgrade(engine)
    (created,) = Store(engine).add([CaptionRequest(source=Source("/a.png"))])
    upgrade(engine)
    assert Store(engine).get(created.job.id).state == "queued"


def test_processes_that_upgrade_at_once_take_turns(database_url: str) -> None:
    program = "import sys; from captioner.store import upgrade; upgrade(sys.argv[1])"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, database_url], stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in started]
    assert [code for _, code in ended] == [0, 0, 0], ended
    require_current(database_url)


def test_an_upgrade_gives_way_to_who_holds_a_table_for_long(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever uses the table would wait behind it, until a backup of an hour has ended."""
    monkeypatch.setattr("captioner.store.schema.LOCK_SECONDS", 0.2)
    engine = create_store_engine(postgres_url)
    upgrade(engine, BEFORE_FRAMES)
    with engine.begin() as backup:
        backup.execute(text("SELECT count(*) FROM jobs"))
        with pytest.raises(SchemaError, match=r"held a table .* run: captioner db upgrade"):
            upgrade(engine)
        assert current(engine) == BEFORE_FRAMES
    upgrade(engine)
    assert current(engine) == head()
    engine.dispose()


def test_threads_that_upgrade_at_once_take_turns(engine: Engine) -> None:
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda _: upgrade(engine), range(4)):
            pass
    assert current(engine) == head()


def test_a_database_without_tables_is_refused_with_the_command(engine: Engine) -> None:
    with pytest.raises(SchemaError, match="has no captioner tables yet; run: captioner db upgrade"):
        require_current(engine)


def test_an_older_schema_is_refused_with_the_command(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(engine)
    here = head()
    monkeypatch.setattr("captioner.store.schema._revisions", lambda: ["next", here])
    with pytest.raises(
        SchemaError, match=f"at schema {here}.* needs next; run: captioner db upgrade"
    ):
        require_current(engine)


def test_a_newer_schema_is_refused_by_programs_and_by_upgrade(engine: Engine) -> None:
    upgrade(engine)
    set_revision(engine, "ffffffffffff")
    with pytest.raises(SchemaError, match="upgraded by a newer captioner"):
        require_current(engine)
    with pytest.raises(SchemaError, match="upgraded by a newer captioner"):
        upgrade(engine)


def test_a_migration_that_fails_changes_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE workers (id INTEGER)"))
    with pytest.raises(Exception, match="already exists"):
        upgrade(engine)
    assert tables(engine) == {"workers"}
    assert current(engine) is None


def test_a_migration_cannot_delete_rows_by_copying_their_table(sqlite_url: str) -> None:
    """Alembic drops the old table: with foreign keys on, the captions of all jobs would go."""
    engine = create_store_engine(sqlite_url)
    upgrade(engine)
    with Store(engine) as store:
        (submission,) = store.add([CaptionRequest(source=Source("/a.png"))])
        store.cancel([submission.job.id])
        with migrating(engine) as connection:
            connection.execute(text("CREATE TABLE copy AS SELECT * FROM jobs"))
            connection.execute(text("DROP TABLE jobs"))
            connection.execute(text("ALTER TABLE copy RENAME TO jobs"))
            connection.execute(text("CREATE UNIQUE INDEX pk ON jobs (id)"))
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM events")) == 1


def test_plain_alembic_works_in_a_checkout(database_url: str) -> None:
    environment = {**os.environ, "CAPTIONER_DATABASE__URL": database_url}
    for arguments in (["upgrade", "head"], ["check"], ["current"]):
        ended = subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
    assert head() in ended.stdout

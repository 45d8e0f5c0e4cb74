"""However many jobs have ended, housekeeping and the path of a job look at none of them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, event, text

from captioner.domain import Lane
from captioner.store import Store, create_store_engine, upgrade
from stored import BROKEN, NOON, again, claimed, submit, success

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

FINISHED = 200_000
MINUTE = timedelta(minutes=1)
#: The indexes that hold ids, or only jobs that have not ended, or those that ended oldest first.
BY_ID_OR_FEW = (
    r"pk_jobs|sqlite_autoindex_jobs_1|ix_jobs_(undispatched|dispatched|not_before|deadline_at"
    r"|owner_processing|finished_at)\b"
)
#: Lost jobs are looked for among those in processing, which are few.
IN_PROCESSING = r"ix_jobs_state_created_at_id \(state=\?\)$"
_NUMBERS = {
    "postgresql": "SELECT n FROM generate_series(1, :count) AS numbers(n)",
    "sqlite": (
        "WITH RECURSIVE numbers(n) AS "
        "(SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count) SELECT n FROM numbers"
    ),
}
_ID = {
    "postgresql": "lpad(to_hex(n), 32, '0')::uuid",
    "sqlite": "printf('%032x', n)",
}
#: A second apart, as the store writes it.
_ENDED = {
    "postgresql": "CAST(:then AS timestamptz) + n * interval '1 second'",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%S.000000', :then, n || ' seconds')",
}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_store_engine(database_url)
    upgrade(engine)
    dialect = engine.dialect.name
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO jobs (id, state, lane, source, source_display, options, metadata, "
                "fingerprint, attempt, crashes, created_at, dispatched_at, started_at, "
                f"finished_at, timings, owner) SELECT {_ID[dialect]}, 'succeeded', 'interactive', "
                f"'/a', '/a', '{{}}', '{{}}', '', 1, 0, :then, :then, :then, {_ENDED[dialect]}, "
                f"'{{}}', 'w' "
                f"FROM ({_NUMBERS[dialect]}) AS numbers"
            ),
            {"count": FINISHED, "then": "2025-12-01 00:00:00+00:00"},
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    yield engine
    engine.dispose()


def test_no_statement_of_the_path_or_of_housekeeping_reads_the_whole_table(engine: Engine) -> None:
    statements: dict[str, Any] = {}

    @event.listens_for(engine, "before_cursor_execute")
    def note(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if re.match(r"(WITH|SELECT|UPDATE|DELETE)\b.*\bjobs\b", statement, re.DOTALL):
            statements[statement] = parameters

    store = Store(engine)
    submit(store, 600, deadline_at=NOON + 9 * MINUTE)
    ids = submit(store, 600)
    store.mark_dispatched([ids[:64], ids[64:100], ids[100:101]], now=NOON)
    jobs = claimed(store, 200)
    store.record([success(job) for job in jobs[:50]], now=NOON)
    store.requeue([again(job, failure=BROKEN, not_before=NOON + MINUTE) for job in jobs[50:90]])
    store.requeue([again(job) for job in jobs[90:100]])
    store.claimed_by("w")
    store.undispatched(NOON + MINUTE, 500)
    store.release_due(500, now=NOON + 2 * MINUTE)
    store.count_dispatches(Lane.INTERACTIVE, NOON + MINUTE)
    assert store.oldest_dispatches(Lane.INTERACTIVE, NOON + MINUTE, 500)
    store.cancel([job.id for job in jobs[:120]])
    assert store.expire_workers(MINUTE, 500, max_losses=20, now=NOON).requeued == 80
    assert len(store.expire_overdue(500, now=NOON + 9 * MINUTE)) == 500
    old = store.ended(NOON - MINUTE, 500)
    assert store.ended(NOON - MINUTE, 500, after=old[-1])
    assert store.delete_over([job.id for job in old]) == 500
    event.remove(engine, "before_cursor_execute", note)

    assert len(statements) >= 12
    with engine.connect() as connection:
        for statement, parameters in statements.items():
            plan = explain(connection, statement, parameters)
            reads = re.findall(r"(?:Scan using \w+ on|Seq Scan on|SCAN|SEARCH) jobs\b.*", plan)
            assert reads, plan
            of_owners = "workers" in statement or "jobs.owner =" in statement
            few = BY_ID_OR_FEW + ("|" + IN_PROCESSING if of_owners else "")
            assert all(re.search(few, read) for read in reads), f"{statement}\n{plan}"
            # A list of ids that is cast is read again for each row: a minute in a small table.
            assert not re.search(r"::(?!uuid)[\w ]+\)::uuid\[\]", plan), plan


def explain(connection: Connection, statement: str, parameters: Any) -> str:
    command = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    many = isinstance(parameters, list)
    rows = connection.exec_driver_sql(
        f"{command} {statement}", parameters[0] if many else parameters
    )
    return "\n".join(str(row[-1]) for row in rows)

"""However many deliveries wait, nobody who looks for a few of them reads them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event, text

from captioner.deliveries import Expansion
from captioner.store import Store, create_store_engine, upgrade
from stored import NOON, claimed, success

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

WAITING = 40_000
_NUMBERS = {
    "postgresql": "SELECT n FROM generate_series(1, :count) AS numbers(n)",
    "sqlite": (
        "WITH RECURSIVE numbers(n) AS "
        "(SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count) SELECT n FROM numbers"
    ),
}


def test_a_claim_takes_the_first_in_the_order_of_the_index(database_url: str) -> None:
    upgrade(database_url)
    engine = create_store_engine(database_url)
    with Store(engine) as store:
        store.record([success(job) for job in claimed(store)], now=NOON)
        (event_id,) = store.unexpanded(1)
        add_waiting(engine, event_id)
        statements = noted(engine)
        found = store.claim_deliveries("w", 50, 60, room={("p", "target1"): 0})
        assert len(found) == 50
        at = next(i for i, (one, _) in enumerate(statements) if "FROM deliveries" in one)
        with engine.begin() as connection:
            for earlier, _ in statements[:at]:
                if earlier.startswith("SET LOCAL"):
                    connection.execute(text(earlier))
            plan = explain(connection, *statements[at])
    index = "USING INDEX" if engine.dialect.name == "sqlite" else "Index Scan using"
    assert f"{index} ix_deliveries_pending" in plan, plan
    # Nothing is sorted: it stops at the fiftieth.
    assert "Sort" not in plan, plan
    assert "TEMP B-TREE" not in plan, plan


def test_retention_looks_at_the_deliveries_of_its_jobs_alone(sqlite_url: str) -> None:
    """SQLite looked at all that wait, for each job: 13 seconds for 500 jobs beside 20,000."""
    upgrade(sqlite_url)
    engine = create_store_engine(sqlite_url)
    with Store(engine) as store:
        store.record([success(job) for job in claimed(store, 2)], now=NOON)
        (awaited, waits), (over, ended) = store.unexpanded(2).items()
        add_waiting(engine, awaited)
        store.expand([Expansion(awaited, ()), Expansion(over, ())], now=NOON)
        statements = noted(engine)
        assert store.delete_over([waits.job_id, ended.job_id]) == 1
        asked = [one for one in statements if "FROM deliveries" in one[0]]
        assert len(asked) == 2
        with engine.connect() as connection:
            for one in asked:
                plan = explain(connection, *one)
                assert "SEARCH deliveries" in plan, plan
                assert "(event_id=?)" in plan, plan


def add_waiting(engine: Engine, event_id: int) -> None:
    """Many pending deliveries of one event."""
    numbers = _NUMBERS[engine.dialect.name]
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO deliveries (event_id, plugin, target, state, attempts, due_at, "
                "created_at) SELECT :event, 'p', 'target' || n, 'pending', 0, :then, :then "
                f"FROM ({numbers}) AS numbers"
            ),
            {"event": event_id, "count": WAITING, "then": "2025-12-01 00:00:00+00:00"},
        )


def noted(engine: Engine) -> list[tuple[str, Any]]:
    """The statements that are run from now on, with their parameters."""
    statements: list[tuple[str, Any]] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if not statement.startswith("EXPLAIN"):
            statements.append((statement, parameters))

    return statements


def explain(connection: Connection, statement: str, parameters: Any) -> str:
    command = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    rows = connection.exec_driver_sql(f"{command} {statement}", parameters)
    return "\n".join(str(row[-1]) for row in rows)

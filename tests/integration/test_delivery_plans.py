"""However many deliveries wait, a claim reads the first few in the order of the index."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event, text

from captioner.store import Store, create_store_engine, upgrade
from stored import NOON, claimed, success

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
    statements: list[tuple[str, Any]] = []
    with Store(engine) as store:
        store.record([success(job) for job in claimed(store)], now=NOON)
        (event_id,) = store.unexpanded(1)
        with engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO deliveries (event_id, plugin, target, state, attempts, due_at, "
                    "created_at) SELECT :event, 'p', 'target' || n, 'pending', 0, :then, :then "
                    f"FROM ({_NUMBERS[engine.dialect.name]}) AS numbers"
                ),
                {"event": event_id, "count": WAITING, "then": "2025-12-01 00:00:00+00:00"},
            )

        @event.listens_for(engine, "before_cursor_execute")
        def note(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
            statements.append((statement, parameters))

        found = store.claim_deliveries("w", 50, 60, room={("p", "target1"): 0})
        assert len(found) == 50
        event.remove(engine, "before_cursor_execute", note)
        at = next(i for i, (one, _) in enumerate(statements) if "FROM deliveries" in one)
        statement, parameters = statements[at]
        sqlite = engine.dialect.name == "sqlite"
        with engine.begin() as connection:
            for earlier, _ in statements[:at]:
                if earlier.startswith("SET LOCAL"):
                    connection.execute(text(earlier))
            command = "EXPLAIN QUERY PLAN" if sqlite else "EXPLAIN"
            rows = connection.exec_driver_sql(f"{command} {statement}", parameters)
            plan = "\n".join(str(row[-1]) for row in rows)
    index = "USING INDEX" if sqlite else "Index Scan using"
    assert f"{index} ix_deliveries_pending" in plan, plan
    # Nothing is sorted: it stops at the fiftieth.
    assert "Sort" not in plan, plan
    assert "TEMP B-TREE" not in plan, plan

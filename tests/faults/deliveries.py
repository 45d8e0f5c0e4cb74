"""Workers of the queue `events` in a house that is broken, and the ledger of their deliveries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

from captioner.events import DeliveryState
from captioner.store import Store, create_store_engine
from deliverers import RECORDER, recorded
from distributions import install
from faults.house import House
from processes import Worker, running_worker
from stored import succeeded

TARGETS = ("a", "b", "c")


@contextmanager
def events_worker(house: House, ready: bool = True, /, **settings: str) -> Iterator[Worker]:
    """A worker of nothing but events, with the plugin `RECORDER`."""
    env = {
        **house.env,
        "CAPTIONER_WORKER__QUEUES": "events",
        "CAPTIONER_PLUGINS__ENABLED": "recorder",
        "CAPTIONER_EVENTS__LEASE_SECONDS": "3",
        "RECORDER": str(house.folder),
        "RECORDER_TARGETS": ",".join(TARGETS),
        **settings,
    }
    with running_worker(house.folder, env, ready=ready) as worker:
        yield worker


def happen(store: Store, count: int) -> set[int]:
    """So many jobs succeed; the ids of all events there are by then, expanded or not."""
    succeeded(store, count)
    with store._database.reading() as connection:
        return set(connection.scalars(text("SELECT id FROM events")))


@contextmanager
def recording_store(house: House) -> Iterator[Store]:
    """The house's database, with the plugin `RECORDER` in the house."""
    install(house.folder / "plugins", "recorder", RECORDER)
    with Store(create_store_engine(house.env["CAPTIONER_DATABASE__URL"])) as store:
        yield store


def states(store: Store) -> dict[DeliveryState, int]:
    """How many deliveries are in each state that any is in."""
    return {state: count for state, count in store.count_deliveries().items() if count}


def check(store: Store, house: House, events: set[int], fault: str) -> Counter[tuple[str, int]]:
    """Every target heard of every event, and every attempt but the killed ones is in the log."""
    heard = Counter(recorded(house.folder))
    begun = Counter(recorded(house.folder, "begin"))
    wanted = {(target, event) for target in TARGETS for event in events}
    print(
        f"\nledger of {fault}: {len(events)} events, {len(wanted)} deliveries; begun "
        f"{begun.total()} times, ended {heard.total()} times"
    )
    assert set(heard) == wanted, "lost or made up"
    assert states(store) == {DeliveryState.DELIVERED: len(wanted)}
    for delivery in store.list_deliveries(limit=1000):
        _, log = store.get_delivery(delivery.id)
        assert [(one.number, one.error) for one in log] == [(1, None)], "not one attempt recorded"
    return begun

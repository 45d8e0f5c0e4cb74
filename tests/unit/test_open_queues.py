"""How many videos a worker takes beside its pictures, and when it takes no more bulk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery.worker import state

from captioner.broker.open_queues import OpenQueues, open_queues

ALL = ["submissions", "captions", "captions.bulk", "videos"]
OPEN = ["submissions", "captions", "captions.bulk"]
NAMES = (open_queues.interactive, open_queues.bulk, open_queues.videos)


class Request:
    """As Celery knows a message that a worker has taken."""

    def __init__(self, queue: str) -> None:
        self.delivery_info = {"exchange": queue, "routing_key": queue}


@pytest.fixture
def taken() -> Iterator[list[Request]]:
    requests: list[Request] = []
    yield requests
    for request in requests:
        state.reserved_requests.discard(request)


def full_after(mine: OpenQueues, requests: list[Request]) -> int:
    """How many videos it takes."""
    while "videos" in mine.among(ALL):
        request: Any = Request("videos")
        requests.append(request)
        state.reserved_requests.add(request)
        mine.take(request)
    return len(requests)


@pytest.mark.parametrize(("slots", "videos"), [(1, 1), (3, 1), (4, 1), (7, 1), (8, 2), (64, 16)])
def test_a_quarter_of_the_slots_and_at_least_one(
    slots: int, videos: int, taken: list[Request]
) -> None:
    mine = OpenQueues(*NAMES)
    mine.slots = lambda: slots
    assert full_after(mine, taken) == videos
    assert mine.among(ALL) == OPEN
    state.reserved_requests.discard(taken[0])  # it has ended, and is not yet gone
    assert mine.among(ALL) == ALL


def test_pictures_are_not_counted(taken: list[Request]) -> None:
    mine = OpenQueues(*NAMES)
    mine.slots = lambda: 4
    for queue in OPEN * 9:
        taken.append(Request(queue))
        state.reserved_requests.add(taken[-1])
        mine.take(taken[-1])
    assert mine.among(ALL) == ALL


def test_what_grows_has_room_for_more(taken: list[Request]) -> None:
    mine = OpenQueues(*NAMES)
    mine.slots = lambda: 4
    full_after(mine, taken)
    mine.slots = lambda: 8
    assert mine.among(ALL) == ALL


def test_a_worker_for_videos_alone_has_no_quota(taken: list[Request]) -> None:
    mine = OpenQueues(*NAMES)
    mine.slots = lambda: 4
    full_after(mine, taken)
    assert mine.among(["videos", "events"]) == ["videos", "events"]


def test_a_worker_with_plenty_takes_no_more_bulk_but_pictures_of_editors() -> None:
    mine = OpenQueues(*NAMES)
    mine.has_plenty = lambda: True
    assert mine.among(ALL) == ["submissions", "captions", "videos"]
    assert mine.bulk_is_closed(ALL)
    mine.has_plenty = lambda: False
    assert mine.among(ALL) == ALL
    assert not mine.bulk_is_closed(ALL)


def test_a_worker_of_bulk_alone_closes_no_queue() -> None:
    mine = OpenQueues(*NAMES)
    mine.has_plenty = lambda: True  # it takes no message at all then: see `TaskPool`
    assert mine.among(["captions.bulk"]) == ["captions.bulk"]
    assert not mine.bulk_is_closed(["captions.bulk"])

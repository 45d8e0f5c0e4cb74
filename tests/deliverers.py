"""Plugins that deliver events, well and badly, for the tests of what becomes of deliveries."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from captioner import Event, hookimpl
from captioner.events import Receipt


class Deliverer:
    """Names fixed targets, and remembers what it delivered to whom: `(target, event id)`."""

    def __init__(self, *targets: str) -> None:
        self.targets: Any = targets
        self.delivered: list[tuple[str, int]] = []
        self.asked: list[int] = []
        #: What a target does instead: called with the event.
        self.does: dict[str, Any] = {}
        self._lock = threading.Lock()
        self.in_flight: dict[str, int] = {}
        self.most_in_flight: dict[str, int] = {}

    @hookimpl
    def event_targets(self, event: Event) -> Iterable[str]:
        self.asked.append(event.id or 0)
        targets: Iterable[str] = self.targets(event) if callable(self.targets) else self.targets
        return targets

    @hookimpl
    def deliver_event(self, event: Event, target: str) -> Receipt | None:
        with self._lock:
            now = self.in_flight[target] = self.in_flight.get(target, 0) + 1
            self.most_in_flight[target] = max(now, self.most_in_flight.get(target, 0))
        try:
            receipt: Receipt | None = self.does[target](event) if target in self.does else None
        finally:
            with self._lock:
                self.in_flight[target] -= 1
        self.delivered.append((target, event.id or 0))
        return receipt


class Gate:
    """Holds whoever calls it until it is opened."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self.held = 0

    def __call__(self, _: Event) -> None:
        self.held += 1
        self._opened.wait()

    def open(self) -> None:
        self._opened.set()


#: A plugin for worker processes: each delivery is a line `begin` and a line `end` of a file, which
#: say which process made it. While the file `hold` is there, deliveries do not end.
RECORDER = """
import os, time
from pathlib import Path
from captioner import hookimpl

folder = Path(os.environ["RECORDER"])
lines = os.open(folder / "lines", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@hookimpl
def event_targets():
    return os.environ.get("RECORDER_TARGETS", "a").split(",")

@hookimpl
def deliver_event(event, target):
    os.write(lines, f"begin {target} {event.id} {os.getpid()}\\n".encode())
    while (folder / "hold").exists():
        time.sleep(0.01)
    time.sleep(float(os.environ.get("RECORDER_SECONDS", "0")))
    os.write(lines, f"end {target} {event.id} {os.getpid()}\\n".encode())
"""


def recorded(folder: Path, kind: str = "end") -> list[tuple[str, int]]:
    """What the plugin `RECORDER` delivered, or began to: target and event."""
    return [delivery for delivery, _ in recorded_by(folder, kind)]


def recorded_by(folder: Path, kind: str = "end") -> list[tuple[tuple[str, int], int]]:
    """The same, each with the id of the process that did."""
    path = folder / "lines"
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        ((target, int(event)), int(pid))
        for k, target, event, pid in map(str.split, lines)
        if k == kind
    ]

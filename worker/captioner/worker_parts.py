"""What a worker is made of, by the queues it works for: captions, events, or both.

Only captions need a model. A worker of the queue `events` alone imports neither torch nor what
decodes pictures.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from captioner.delivering import DeliveryService
from captioner.errors import StoreUnavailableError
from captioner.plugins import Plugins, load_plugins
from captioner.queues import EVENTS_QUEUE, QUEUES
from captioner.reports import Reports
from captioner.settings import Settings
from captioner.store import Store, open_store

if TYPE_CHECKING:
    from captioner.service import CaptionService

logger = logging.getLogger(__name__)


class WorkerParts:
    """The parts of one worker process, begun and ended in the right order."""

    def __init__(
        self,
        store: Store,
        owner: str,
        plugins: Plugins,
        reports: Reports,
        settings: Settings,
        *,
        captions: CaptionService | None,
        events: bool,
    ) -> None:
        """Begin to deliver events, if that is asked for.

        Args:
            store: the database, closed at the end.
            owner: this worker's id there.
            plugins: of this process.
            reports: what the plugins hear, begun.
            settings: of this process.
            captions: the service, with its model loaded; None: this worker captions nothing.
            events: whether it delivers events.
        """
        self.store = store
        self.owner = owner
        self.captions = captions
        self.deliveries: DeliveryService | None = None
        self._reports = reports
        if events:
            self.deliveries = DeliveryService(
                store, plugins, owner, settings.events, processes=settings
            )
            reports.include(self.deliveries.add_stats)
            self.deliveries.start()

    def look_after(self) -> None:
        """To be called at every heartbeat.

        Raises:
            StoreUnavailableError: the database cannot be reached.
        """
        if self.captions:
            self.captions.look_after()
        else:
            self._reports.send()

    def stop_taking(self) -> None:
        """From now on nothing is begun; what runs goes on."""
        if self.captions:
            self.captions.stop_taking()
        if self.deliveries:
            self.deliveries.stop_taking()

    def hand_back(self) -> None:
        """Give back everything, what runs too, at once: this process is about to end."""
        if self.deliveries:
            self.deliveries.hand_back()
        if self.captions:
            self.captions.hand_back()
        else:
            self.store.unregister_worker(self.owner)

    def close(self) -> None:
        """Wait for what runs, tell the plugins, and free everything."""
        if self.deliveries:
            self.deliveries.stop()
        if self.captions:
            self.captions.close()
            return
        self._reports.end()
        try:
            self.store.unregister_worker(self.owner)
        except StoreUnavailableError as error:
            logger.warning("this worker stays listed until it expires: %s", error)
        self.store.close()


def open_parts(
    settings: Settings, queues: Collection[str], *, poll: Callable[[], None]
) -> WorkerParts:
    """Everything a worker of these queues needs, with the model loaded where it captions.

    Args:
        settings: of this process.
        queues: what it works for.
        poll: called now and then while the model loads; what it raises ends the loading.

    Raises:
        SchemaError: the database is not of this version.
        StoreUnavailableError: the database cannot be reached.
        ModelLoadError: the model cannot be loaded.
    """
    events = EVENTS_QUEUE in queues
    if not set(queues).isdisjoint(QUEUES.values()):
        from captioner.service import open_service  # numpy and Pillow: only where they are used

        logger.info("loading model %s", settings.model.id)
        service = open_service(settings, poll=poll)
        return WorkerParts(
            service.store,
            service.owner,
            service.plugins,
            service.reports,
            settings,
            captions=service,
            events=events,
        )
    store = open_store(settings)
    try:
        plugins = load_plugins(settings.plugins)
        owner = store.register_worker(socket.gethostname(), queues=sorted(queues))
        reports = Reports(store, plugins)
        reports.begin(settings)
        return WorkerParts(store, owner, plugins, reports, settings, captions=None, events=events)
    except BaseException:
        store.close()
        raise

"""What the commands share: the store, and what people call an endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any
from uuid import UUID

import typer

from captioner.cli.environment import settings_from
from captioner.errors import EndpointNotFoundError, InvalidRequestError
from captioner.logs import configure_logging
from captioner.request_json import as_uuid
from captioner.settings import Settings
from captioner.store import Store, WebhookEndpoint, open_store
from captioner.webhooks.endpoints import JOBS_ENDPOINT_ID, endpoint_target

#: What the endpoint that stands for the `webhook_url`s of jobs is called here.
JOBS = "jobs"

Registered = Annotated[
    str, typer.Argument(metavar="ID", help="Id of an endpoint.", show_default=False)
]
Endpoint = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="Id of an endpoint, or `jobs` for the webhook_url of every job.",
        show_default=False,
    ),
]


@contextmanager
def opened(database: str | None) -> Iterator[tuple[Store, Settings]]:
    """The store and the settings, for one command."""
    settings = settings_from(database__url=database)
    configure_logging(settings.log)
    with open_store(settings) as store:
        yield store, settings


def endpoint_id_of(text: str) -> UUID:
    """The id that somebody typed.

    Raises:
        EndpointNotFoundError: no endpoint can have it.
    """
    found = JOBS_ENDPOINT_ID if text == JOBS else as_uuid(text)
    if found is None:
        raise EndpointNotFoundError(text)
    return found


def target_of(text: str) -> str:
    """What deliveries to the endpoint have as their target.

    Raises:
        EndpointNotFoundError: no endpoint can have this id.
        InvalidRequestError: it stands for many targets.
    """
    if text == JOBS:
        raise InvalidRequestError("deliveries to the webhook_url of jobs are listed without an ID")
    return endpoint_target(endpoint_id_of(text))


def name_of(endpoint_id: UUID) -> str:
    """What people call an endpoint."""
    return JOBS if endpoint_id == JOBS_ENDPOINT_ID else str(endpoint_id)


def mapping_of(endpoint: WebhookEndpoint) -> dict[str, Any]:
    """The endpoint as programs see it."""
    return {**endpoint.as_mapping(), "id": name_of(endpoint.id)}

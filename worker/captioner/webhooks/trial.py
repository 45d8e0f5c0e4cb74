"""A webhook that tells of nothing, to see whether a receiver is there and has the right secret."""

from __future__ import annotations

from uuid import UUID, uuid4

from captioner.errors import InvalidRequestError
from captioner.events import Receipt
from captioner.settings import Settings
from captioner.store import Store
from captioner.webhooks.body import encoded
from captioner.webhooks.endpoints import JOBS_ENDPOINT_ID, signing_secrets
from captioner.webhooks.sending import send

TEST_TYPE = "webhook.test"


def send_test(store: Store, settings: Settings, endpoint_id: UUID) -> Receipt:
    """Post a webhook of the type `webhook.test` to an endpoint from here, and once.

    A disabled endpoint may be tested before it is enabled. Nothing of it goes into the delivery
    log, and what comes of it changes nothing.

    Raises:
        EndpointNotFoundError: there is none.
        DeliveryError: it did not arrive, or was answered with something else than 2xx.
        SettingsError: the key its secret was encrypted with is not here.
    """
    if endpoint_id == JOBS_ENDPOINT_ID:
        raise InvalidRequestError("every job has a webhook_url of its own; test an endpoint")
    endpoint, now = store.endpoint(endpoint_id), store.now()
    return send(
        endpoint.url,
        secrets=signing_secrets(endpoint, settings, now=now),
        message_id=f"msg_{uuid4().hex}",
        body=encoded(TEST_TYPE, now, {"endpoint": str(endpoint.id)}),
        settings=settings,
        now=now,
    )

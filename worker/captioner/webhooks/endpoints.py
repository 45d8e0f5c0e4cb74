"""Registering receivers and replacing their secrets, which are shown once and kept encrypted.

Encryption is imported where it is used: who only reads does without the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from captioner.domain import Source, check_webhook_url
from captioner.errors import InvalidRequestError
from captioner.events import ALL_EVENT_TYPES
from captioner.settings import Settings
from captioner.store import Store, WebhookEndpoint
from captioner.webhooks.secrets import new_secret

#: The endpoint that stands for the `webhook_url`s of all jobs, which share its secret. It is made
#: when it is first needed, and can be rotated, disabled and enabled like any other.
JOBS_ENDPOINT_ID = UUID(int=0)
#: The plugin that makes the deliveries.
PLUGIN = "webhook"
MAX_DESCRIPTION_CHARACTERS = 1_000


def endpoint_target(endpoint_id: UUID) -> str:
    """What deliveries to an endpoint have as their target."""
    return f"endpoint:{endpoint_id}"


def add_endpoint(
    store: Store,
    settings: Settings,
    url: str,
    *,
    description: str = "",
    event_types: Sequence[str] = (),
) -> tuple[WebhookEndpoint, str]:
    """Register a receiver.

    Args:
        store: where endpoints are kept.
        settings: which key encrypts its secret.
        url: http or https.
        description: for people.
        event_types: which events it wants; empty: all.

    Returns:
        The endpoint, and its secret, which the receiver has to be told.

    Raises:
        InvalidRequestError: the URL, the description or an event type cannot be used.
        SettingsError: there is no usable key.
    """
    from captioner.webhooks.encryption import open_cipher

    check_webhook_url(url)
    for kind in event_types:
        if kind not in ALL_EVENT_TYPES:
            raise InvalidRequestError(
                f"no event is of the type {kind!r}; there are {', '.join(ALL_EVENT_TYPES)}"
            )
    if len(description) > MAX_DESCRIPTION_CHARACTERS or not description.isprintable():
        raise InvalidRequestError(
            f"a description has at most {MAX_DESCRIPTION_CHARACTERS} characters, in one line"
        )
    secret, now = new_secret(), datetime.now(UTC)
    endpoint = WebhookEndpoint(
        id=uuid4(),
        url=url,
        url_display=Source(url).display,
        description=description,
        event_types=tuple(dict.fromkeys(event_types)),
        secret=open_cipher(settings, create=True).encrypt(secret),
        created_at=now,
        updated_at=now,
    )
    store.add_endpoint(endpoint)
    return endpoint, secret


def rotate_secret(
    store: Store, settings: Settings, endpoint_id: UUID, *, keep_previous: timedelta = timedelta(0)
) -> str:
    """Give an endpoint a new secret, and return it.

    Args:
        store: where endpoints are kept.
        settings: which key encrypts it.
        endpoint_id: of which.
        keep_previous: for so long webhooks are signed with the old one too, so that the receiver
            can change over at any moment.

    Raises:
        EndpointNotFoundError: there is none.
        SettingsError: there is no usable key.
    """
    from captioner.webhooks.encryption import open_cipher

    if endpoint_id == JOBS_ENDPOINT_ID:
        jobs_endpoint(store, settings)
    secret, now = new_secret(), datetime.now(UTC)
    store.replace_endpoint_secret(
        endpoint_id,
        open_cipher(settings, create=True).encrypt(secret),
        previous_until=now + keep_previous if keep_previous else None,
        now=now,
    )
    return secret


def jobs_endpoint(store: Store, settings: Settings) -> WebhookEndpoint:
    """The endpoint that stands for the `webhook_url`s of jobs, made if it is not there.

    Raises:
        SettingsError: there is no usable key.
    """
    from captioner.webhooks.encryption import open_cipher

    found = [one for one in store.endpoints() if one.id == JOBS_ENDPOINT_ID]
    if found:
        return found[0]
    now = datetime.now(UTC)
    store.add_endpoint(
        WebhookEndpoint(
            id=JOBS_ENDPOINT_ID,
            url="",
            url_display="the webhook_url of each job",
            secret=open_cipher(settings, create=True).encrypt(new_secret()),
            created_at=now,
            updated_at=now,
        )
    )
    # Not the one made here: another process may have been first.
    return store.endpoint(JOBS_ENDPOINT_ID)


def signing_secrets(
    endpoint: WebhookEndpoint, settings: Settings, *, now: datetime | None = None
) -> list[str]:
    """What to sign with: the endpoint's secret, and the previous one until it has expired.

    Raises:
        SettingsError: the key they were encrypted with is not here.
    """
    from captioner.webhooks.encryption import open_cipher

    cipher = open_cipher(settings)
    secrets = [cipher.decrypt(endpoint.secret)]
    until = endpoint.previous_secret_expires_at
    if endpoint.previous_secret and until and (now or datetime.now(UTC)) < until:
        secrets.append(cipher.decrypt(endpoint.previous_secret))
    return secrets

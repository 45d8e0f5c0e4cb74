"""Registering receivers and replacing their secrets, which are shown once and kept encrypted.

Encryption is imported where it is used: who only reads does without the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from captioner.errors import InvalidRequestError
from captioner.events import ALL_EVENT_TYPES
from captioner.settings import Settings
from captioner.store import Store, WebhookEndpoint
from captioner.webhook_url import check_webhook_url, webhook_display
from captioner.webhooks.receivers import receiver_of, receiver_secret
from captioner.webhooks.secrets import new_secret

#: The endpoint that stands for the `webhook_url`s of all jobs: from its secret, which nobody is
#: told, each receiver's own is made. It comes into being when it is first needed, and can be
#: rotated, disabled and enabled like any other.
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
    secret, now = new_secret(), store.now()
    endpoint = WebhookEndpoint(
        id=uuid4(),
        url=url,
        url_display=webhook_display(url),
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

    Both are encrypted with the newest key, so that after this an older one is not needed for them.

    Args:
        store: where endpoints are kept.
        settings: which key encrypts it.
        endpoint_id: of which.
        keep_previous: for so long webhooks are signed with the old one too, so that the receiver
            can change over at any moment.

    Raises:
        EndpointNotFoundError: there is none.
        SettingsError: there is no usable key, or not the one that the old secret was encrypted
            with and is to be kept from.
    """
    from captioner.webhooks.encryption import open_cipher

    if endpoint_id == JOBS_ENDPOINT_ID:
        jobs_endpoint(store, settings)
    cipher, secret, now = open_cipher(settings, create=True), new_secret(), store.now()
    while True:  # until nobody else has replaced it meanwhile
        endpoint = store.endpoint(endpoint_id)
        if store.replace_endpoint_secret(
            endpoint,
            cipher.encrypt(secret),
            previous=cipher.encrypt(cipher.decrypt(endpoint.secret)) if keep_previous else None,
            previous_until=now + keep_previous if keep_previous else None,
            now=now,
        ):
            return secret


def reencrypt_secrets(store: Store, settings: Settings) -> int:
    """Encrypt every secret with the newest key, and forget previous ones that have expired.

    Returns:
        How many endpoints there are.

    Raises:
        SettingsError: there is no usable key, or not the one that a secret was encrypted with.
    """
    from captioner.webhooks.encryption import open_cipher

    cipher, now, endpoints = open_cipher(settings), store.now(), store.endpoints()
    for endpoint in endpoints:
        secret, *previous = map(cipher.decrypt, _tokens(endpoint, now))
        # Where it is refused somebody rotates, who does the same.
        store.replace_endpoint_secret(
            endpoint,
            cipher.encrypt(secret),
            previous=cipher.encrypt(previous[0]) if previous else None,
            previous_until=endpoint.previous_secret_expires_at if previous else None,
            now=now,
        )
    return len(endpoints)


def jobs_endpoint(store: Store, settings: Settings) -> WebhookEndpoint:
    """The endpoint that stands for the `webhook_url`s of jobs, made if it is not there.

    Raises:
        SettingsError: there is no usable key.
    """
    from captioner.webhooks.encryption import open_cipher

    found = [one for one in store.endpoints() if one.id == JOBS_ENDPOINT_ID]
    if found:
        return found[0]
    now = store.now()
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


def secret_of_receiver(store: Store, settings: Settings, url: str) -> str:
    """What the receiver behind a `webhook_url` of jobs verifies with; the newest of its secrets.

    Raises:
        InvalidRequestError: no job can have this `webhook_url`.
        SettingsError: there is no usable key.
    """
    check_webhook_url(url)
    try:
        receiver_of(url)
    except ValueError:
        raise InvalidRequestError("the URL has no valid host") from None
    return signing_secrets(jobs_endpoint(store, settings), settings, url=url)[0]


def signing_secrets(
    endpoint: WebhookEndpoint, settings: Settings, *, url: str = "", now: datetime | None = None
) -> list[str]:
    """What to sign with: the endpoint's secret, and the previous one until it has expired.

    Args:
        endpoint: which; of the one that stands for the `webhook_url`s of jobs the secrets are
            never used themselves, but each receiver's own.
        settings: which key they are encrypted with.
        url: the job's `webhook_url`.
        now: the time to work with.

    Raises:
        SettingsError: the key they were encrypted with is not here.
        ValueError: nothing can be sent to the URL.
    """
    from captioner.webhooks.encryption import open_cipher

    tokens = _tokens(endpoint, now or datetime.now(UTC))
    secrets = list(map(open_cipher(settings).decrypt, tokens))
    if endpoint.id != JOBS_ENDPOINT_ID:
        return secrets
    receiver = receiver_of(url)
    return [receiver_secret(root, receiver) for root in secrets]


def _tokens(endpoint: WebhookEndpoint, now: datetime) -> list[str]:
    """The encrypted secrets that sign now, the newest first."""
    until = endpoint.previous_secret_expires_at
    if endpoint.previous_secret and until and now < until:
        return [endpoint.secret, endpoint.previous_secret]
    return [endpoint.secret]

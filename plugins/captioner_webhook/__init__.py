"""Webhooks: tells receivers how jobs ended.

Receivers are the endpoints of `captioner webhooks`, and whoever a job names in its `webhook_url`.
Deliveries, their retries and their log are captioner's; this is addressing, signing and posting.
"""

from __future__ import annotations

import hashlib
import logging
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from captioner import DeliveryError, Event, Job, Receipt, hookimpl

# By its name, as its parts are imported when they are used: each process of a worker loads each
# plugin, decoders too, and this one's SQL and HTTP took them half a second.
from captioner import webhooks as standard

if TYPE_CHECKING:
    from captioner.webhooks import Settings, Store, WebhookEndpoint

__all__ = ["Webhooks", "message_id", "webhooks"]

logger = logging.getLogger(__name__)

#: A target is `endpoint:` and an id, or this and the host of a job's own receiver: never more of a
#: URL than that, and what is on its way to one host counts together, however it is spelled.
URL = "url:"
_LONGEST_ORIGIN_CHARACTERS = 200


class Webhooks:
    """The plugin."""

    def __init__(self, settings: Settings | None = None) -> None:
        """`settings` are read from the environment when none are given, and not before needed."""
        self._given_settings = settings

    @hookimpl
    def worker_ready(self, settings: Settings) -> None:
        """Warn of a key that no delivery could be signed with, before there is one."""
        try:
            standard.check_key(settings)
        except standard.SettingsError as error:
            logger.warning("no webhook can be signed: %s", error)
        except ImportError:
            pass  # a worker without the extra `webhooks`: a delivery says what it needs

    @hookimpl
    def event_targets(self, event: Event, job: Job, store: Store) -> list[str]:
        """The enabled endpoints that want such events, and the job's own receiver."""
        endpoints = store.endpoints()
        targets = [standard.endpoint_target(one.id) for one in endpoints if _wants(one, event)]
        disabled = {one.id for one in endpoints if one.state is standard.EndpointState.DISABLED}
        if job.webhook_url and standard.JOBS_ENDPOINT_ID not in disabled:
            targets.append(f"{URL}{_origin(job.webhook_url)}")
        return targets

    @hookimpl
    def deliver_event(self, event: Event, job: Job, target: str, store: Store) -> Receipt:
        """Post the event to one receiver."""
        endpoint = self._endpoint(target, store)
        if endpoint.state is standard.EndpointState.DISABLED:
            raise DeliveryError("the endpoint is disabled", permanent=True)
        own = endpoint.id == standard.JOBS_ENDPOINT_ID
        url = job.webhook_url if own else endpoint.url
        if not url:
            raise DeliveryError("the job has no webhook_url", permanent=True)
        now = store.now()
        try:
            secrets = standard.signing_secrets(endpoint, self._settings(), url=url, now=now)
        except standard.SettingsError as error:
            raise DeliveryError(str(error)) from error
        except ValueError:
            raise DeliveryError("the webhook_url cannot be used", permanent=True) from None
        try:
            receipt = standard.send(
                url,
                secrets=secrets,
                message_id=message_id(event, target),
                body=standard.webhook_body(event, job),
                settings=self._settings(),
                now=now,
            )
        except DeliveryError as error:
            if not own:
                self._note_failure(endpoint, error, store)
            raise
        if endpoint.failing_since:
            store.endpoint_answered(endpoint.id)
        return receipt

    def _settings(self) -> Settings:
        if self._given_settings is None:
            self._given_settings = standard.load_settings()
        return self._given_settings

    def _endpoint(self, target: str, store: Store) -> WebhookEndpoint:
        try:
            if target.startswith(URL):
                return standard.jobs_endpoint(store, self._settings())
            return store.endpoint(UUID(target.rpartition(":")[2]))
        except standard.EndpointNotFoundError:
            raise DeliveryError("the endpoint was removed", permanent=True) from None
        except standard.SettingsError as error:
            raise DeliveryError(str(error)) from error

    def _note_failure(self, endpoint: WebhookEndpoint, error: DeliveryError, store: Store) -> None:
        """Disable an endpoint that is gone, or that has failed for long."""
        days = self._settings().webhooks.disable_after_days
        since = endpoint.failing_since
        if error.status == standard.GONE:
            reason = f"it answered with HTTP status {standard.GONE}: gone"
        elif since is None:
            store.endpoint_failed(endpoint.id)
            return
        elif days and store.now() - since >= timedelta(days=days):
            reason = f"every delivery has failed since {since:%Y-%m-%d %H:%M} UTC: {error}"
        else:
            return
        if store.give_up_endpoint(endpoint, reason):
            logger.warning(
                "webhook endpoint %s is disabled: %s; to go on: captioner webhooks enable %s",
                endpoint.id,
                reason,
                endpoint.id,
            )


def message_id(event: Event, target: str) -> str:
    """What a receiver knows a repeated delivery by: one for each event and target, everywhere."""
    text = f"{event.job_id}/{event.id}/{target}"
    return f"msg_{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _wants(endpoint: WebhookEndpoint, event: Event) -> bool:
    return (
        endpoint.state is standard.EndpointState.ENABLED
        and endpoint.id != standard.JOBS_ENDPOINT_ID
        and (not endpoint.event_types or event.type in endpoint.event_types)
    )


def _origin(url: str) -> str:
    """Scheme, host and port."""
    try:
        origin = standard.receiver_origin(url)
    except ValueError:
        return "unusable"  # it was stored when less was known; its delivery says so
    if len(origin) <= _LONGEST_ORIGIN_CHARACTERS:
        return origin
    return hashlib.sha256(origin.encode()).hexdigest()[:32]


#: What the entry point names.
webhooks = Webhooks()

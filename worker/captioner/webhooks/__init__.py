"""Webhooks as Standard Webhooks 1.0.0 has them.

For receivers there is `verify`, which needs neither SQL nor HTTP:

    from captioner.webhooks import WebhookVerificationError, verify

    webhook = verify(request.headers, request.body, "whsec_…")

The rest is for the plugin that sends them; it is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from captioner.errors import WebhookVerificationError
from captioner.webhooks.verifying import VerifiedWebhook, verify

if TYPE_CHECKING:
    from captioner.domain import EndpointState
    from captioner.errors import EndpointNotFoundError, SettingsError
    from captioner.settings import Settings, load_settings
    from captioner.store import Store, WebhookEndpoint
    from captioner.webhooks.body import webhook_body
    from captioner.webhooks.encryption import check_key
    from captioner.webhooks.endpoints import (
        JOBS_ENDPOINT_ID,
        endpoint_target,
        jobs_endpoint,
        signing_secrets,
    )
    from captioner.webhooks.receivers import receiver_origin
    from captioner.webhooks.sending import GONE, send

_ORIGINS = {
    "EndpointNotFoundError": "captioner.errors",
    "EndpointState": "captioner.domain",
    "GONE": "captioner.webhooks.sending",
    "JOBS_ENDPOINT_ID": "captioner.webhooks.endpoints",
    "Settings": "captioner.settings",
    "SettingsError": "captioner.errors",
    "Store": "captioner.store",
    "WebhookEndpoint": "captioner.store",
    "check_key": "captioner.webhooks.encryption",
    "endpoint_target": "captioner.webhooks.endpoints",
    "jobs_endpoint": "captioner.webhooks.endpoints",
    "load_settings": "captioner.settings",
    "receiver_origin": "captioner.webhooks.receivers",
    "send": "captioner.webhooks.sending",
    "signing_secrets": "captioner.webhooks.endpoints",
    "webhook_body": "captioner.webhooks.body",
}

__all__ = [
    "GONE",
    "JOBS_ENDPOINT_ID",
    "EndpointNotFoundError",
    "EndpointState",
    "Settings",
    "SettingsError",
    "Store",
    "VerifiedWebhook",
    "WebhookEndpoint",
    "WebhookVerificationError",
    "check_key",
    "endpoint_target",
    "jobs_endpoint",
    "load_settings",
    "receiver_origin",
    "send",
    "signing_secrets",
    "verify",
    "webhook_body",
]


def __getattr__(name: str) -> Any:
    if name not in _ORIGINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ORIGINS[name]), name)

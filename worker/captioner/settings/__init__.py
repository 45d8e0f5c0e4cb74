"""Settings, read once at the edges and passed down as values.

Each has a twin in the environment: `CAPTIONER_` and the name, `__` between the levels, such as
`CAPTIONER_DATABASE__URL`. With no environment at all everything runs on SQLite and a file-based
broker in the user's data folder.
"""

from __future__ import annotations

from captioner.settings.environment import ENVIRONMENT_PREFIX, Settings, load_settings
from captioner.settings.events import EventSettings, WebhookSettings
from captioner.settings.media import MediaSettings
from captioner.settings.model import BLIP_LARGE, EngineSettings, GenerationSettings, ModelSettings
from captioner.settings.storage import BrokerSettings, DatabaseSettings, RetentionSettings
from captioner.settings.worker import (
    LogSettings,
    PluginSettings,
    RetrySettings,
    WorkerSettings,
)

__all__ = [
    "BLIP_LARGE",
    "ENVIRONMENT_PREFIX",
    "BrokerSettings",
    "DatabaseSettings",
    "EngineSettings",
    "EventSettings",
    "GenerationSettings",
    "LogSettings",
    "MediaSettings",
    "ModelSettings",
    "PluginSettings",
    "RetentionSettings",
    "RetrySettings",
    "Settings",
    "WebhookSettings",
    "WorkerSettings",
    "load_settings",
]

"""Settings of a process, and reading them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

import platformdirs
from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from captioner.errors import SettingsError
from captioner.queues import ALL_QUEUES, JOB_QUEUES
from captioner.settings.events import EventSettings, WebhookSettings
from captioner.settings.media import MediaSettings
from captioner.settings.model import EngineSettings, GenerationSettings, ModelSettings
from captioner.settings.storage import BrokerSettings, DatabaseSettings, RetentionSettings
from captioner.settings.worker import (
    LogSettings,
    PluginSettings,
    RetrySettings,
    WorkerSettings,
)

ENVIRONMENT_PREFIX = "CAPTIONER_"


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


class Settings(BaseSettings):
    """All settings of one process.

    Use `load_settings()` to read them: it turns pydantic's report into one clear line.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
    )

    data_dir: Annotated[Path, AfterValidator(_absolute)] = Field(
        default_factory=lambda: platformdirs.user_data_path("captioner", appauthor=False),
        description="Folder of the embedded database and broker, and the key of webhooks.",
    )
    database: DatabaseSettings = DatabaseSettings()
    broker: BrokerSettings = BrokerSettings()
    model: ModelSettings = ModelSettings()
    generation: GenerationSettings = GenerationSettings()
    engine: EngineSettings = EngineSettings()
    media: MediaSettings = MediaSettings()
    worker: WorkerSettings = WorkerSettings()
    retry: RetrySettings = RetrySettings()
    events: EventSettings = EventSettings()
    retention: RetentionSettings = RetentionSettings()
    webhooks: WebhookSettings = WebhookSettings()
    plugins: PluginSettings = PluginSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _check_urls(self) -> Self:
        _check_scheme(self.database.url, "CAPTIONER_DATABASE__URL", ("sqlite", "postgresql"))
        _check_scheme(
            self.broker.url,
            "CAPTIONER_BROKER__URL",
            ("redis", "rediss", "sentinel", "sqla", "memory"),
        )
        return self

    @model_validator(mode="after")
    def _check_lease(self) -> Self:
        if self.worker.lease_seconds <= self.worker.heartbeat_seconds:
            raise ValueError(
                "CAPTIONER_WORKER__LEASE_SECONDS must be greater than "
                "CAPTIONER_WORKER__HEARTBEAT_SECONDS: a worker between two of them is alive"
            )
        return self

    @property
    def embedded_database(self) -> bool:
        """True when no database was named: the SQLite file of the data folder is ours to create."""
        return not self.database.url.get_secret_value()

    @property
    def embedded_database_path(self) -> Path:
        """Where the embedded database is, or will be."""
        return self.data_dir / "captioner.sqlite3"

    @property
    def database_url(self) -> str:
        """The database to use; PostgreSQL always by psycopg 3. Holds a password: never print it."""
        url = self.database.url.get_secret_value()
        if not url:
            return f"sqlite:///{self.embedded_database_path}"
        scheme, rest = url.split("://", 1)
        return f"postgresql+psycopg://{rest}" if scheme == "postgresql" else url

    @property
    def broker_url(self) -> str:
        """The broker to use. Holds a password: never print it."""
        return (
            self.broker.url.get_secret_value()
            or f"sqla+sqlite:///{self.data_dir / 'broker.sqlite3'}"
        )

    @property
    def queues(self) -> str:
        """What a worker works for, separated by commas.

        Events are another worker's, one without a model, where there can be a second one at all.
        """
        embedded = not self.broker.url.get_secret_value()
        return self.worker.queues or ",".join(ALL_QUEUES if embedded else JOB_QUEUES)

    @property
    def concurrency(self) -> int:
        """Jobs a worker has in hand at once.

        Three batches' worth: one on the device, one being prepared, one of slack (measured: two
        fill 93 % of a batch of 32, three 97 %).
        """
        return self.worker.concurrency or 3 * self.engine.max_batch


def _check_scheme(url: SecretStr, variable: str, allowed: tuple[str, ...]) -> None:
    text = url.get_secret_value()
    if text.startswith("sentinel://"):
        # Of several, whichever answers.
        for one in text.split(";"):
            _check_one(one, variable, ("sentinel",))
    elif text:
        _check_one(text, variable, allowed)


def _check_one(text: str, variable: str, allowed: tuple[str, ...]) -> None:
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.split("+")[0] not in allowed:
        raise ValueError(
            f"{variable} must begin with {' or '.join(f'{name}://' for name in allowed)}"
        )
    if scheme.startswith("postgresql+") and scheme != "postgresql+psycopg":
        raise ValueError(f"{variable} must use psycopg 3: postgresql+psycopg://…")
    try:
        _ = urlsplit(f"x://{rest}").port
    except ValueError:
        raise ValueError(f"{variable} has a port that is not a number from 0 to 65535") from None


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        SettingsError: a value cannot be used, or a name in a known section is unknown; one line a
            problem, never the value of a secret.
    """
    sections = {name.upper() for name in Settings.model_fields}
    for variable in sorted(os.environ):
        section, nested, _ = variable.removeprefix(ENVIRONMENT_PREFIX).partition("__")
        # Without the double underscore it may be a plugin's own.
        if variable.startswith(ENVIRONMENT_PREFIX) and nested and section not in sections:
            raise SettingsError(f"{variable} is not a setting of captioner")
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("; ".join(_problem(one) for one in error.errors())) from None
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _problem(error: ErrorDetails) -> str:
    location = [str(part) for part in error["loc"]]
    message = str(error["msg"]).removeprefix("Value error, ")
    if not location:
        return message
    variable = ENVIRONMENT_PREFIX + "__".join(location[:2]).upper()
    if error["type"] == "extra_forbidden":
        return f"{variable} is not a setting of captioner"
    shown = error["input"]
    # With an @ it may be a URL with a password in it, wherever it was meant to go.
    secret = variable.endswith("URL") or "@" in str(shown)
    if isinstance(shown, str | int | float) and not secret:
        return f"{variable}: {message}, not {shown!r}"
    return f"{variable}: {message}"

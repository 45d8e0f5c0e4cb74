"""Settings, read once at the edges and passed down as values.

Each has a twin in the environment: `CAPTIONER_` and the name, `__` between the levels, such as
`CAPTIONER_DATABASE__URL`. With no environment at all everything runs on SQLite and a file-based
broker in the user's data folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from captioner.allowed_hosts import AllowedHost, parse_allowed_hosts
from captioner.errors import SettingsError

ENVIRONMENT_PREFIX = "CAPTIONER_"
#: In the order a worker prefers them.
JOB_QUEUES = "submissions,captions,captions.bulk,videos"
BLIP_LARGE = "Salesforce/blip-image-captioning-large"


class Section(BaseModel):
    """A group of settings; a name it does not know is an error, not silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DatabaseSettings(Section):
    """Where jobs are recorded."""

    url: SecretStr = Field(
        SecretStr(""),
        description="postgresql+psycopg://… or sqlite:///…; empty: SQLite in the data folder.",
    )
    pool_size: int = Field(8, ge=1, le=256, description="Most connections to PostgreSQL.")
    busy_timeout_seconds: float = Field(
        10.0, gt=0, le=600, description="How long SQLite waits for another writer."
    )


class BrokerSettings(Section):
    """What carries job ids to workers."""

    url: SecretStr = Field(
        SecretStr(""),
        description="redis://…, rediss://…, sentinel://…; empty: a SQLite file in the data folder.",
    )
    key_prefix: str = Field(
        "captioner:", description="Prefix of every key in Redis; one per installation sharing it."
    )
    visibility_timeout_seconds: int = Field(
        600,
        ge=10,
        description="Redis redelivers a request that no worker has inserted after this long.",
    )
    socket_timeout_seconds: float = Field(
        10.0, gt=0, description="A frozen Redis is given up after this long."
    )
    sentinel_master: str = Field(
        "mymaster", min_length=1, description="What sentinels call the Redis to use."
    )
    max_message_bytes: int = Field(
        2**20, ge=4096, description="Larger messages in Redis are dropped unread."
    )


class ModelSettings(Section):
    """The resident model."""

    id: str = Field(
        BLIP_LARGE,
        min_length=1,
        description="Hub id, local folder in Hugging Face format, or `demo`.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float16", "bfloat16", "float32", "float64"] = Field(
        "auto",
        description="auto: float16 on CUDA, bfloat16 on CPUs made for it, else float32.",
    )
    backend: Literal["fast", "transformers"] = Field(
        "fast", description="What runs the model; transformers is the reference, and slow."
    )


class GenerationSettings(Section):
    """What a request that says nothing gets."""

    num_beams: int = Field(3, ge=1, le=32, description="Beams of a request that names none.")
    max_new_tokens: int = Field(20, ge=1, le=256, description="Greatest caption length in tokens.")


class EngineSettings(Section):
    """What runs the model, and how pictures are gathered into batches."""

    inline: bool = Field(
        default=False,
        description="Run the model in the worker's own process: it may take that down.",
    )
    max_batch: int = Field(32, ge=1, le=1024, description="Most pictures of one batch.")
    linger_seconds: float = Field(
        0.005, ge=0, le=1, description="How long a picture waits for company when all is idle."
    )
    hang_seconds: float = Field(
        120.0, gt=0, le=86_400, description="A batch that takes longer is taken for a hang."
    )
    load_timeout_seconds: float = Field(
        900.0, gt=0, le=86_400, description="Loading and warming the model may take this long."
    )
    max_memory_bytes: int | None = Field(
        None, ge=1, description="The engine is restarted when it is larger, between batches."
    )


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _allowed_hosts(value: object) -> object:
    return parse_allowed_hosts(value) if isinstance(value, str) else value


def _comma_separated(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


AllowedHosts = Annotated[tuple[AllowedHost, ...], BeforeValidator(_allowed_hosts), NoDecode]
AllowedPorts = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65_535)], ...], BeforeValidator(_comma_separated), NoDecode
]


class MediaSettings(Section):
    """What may be read, and how much of it."""

    allowed_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (Path(),),
        description="Folders of local sources, separated by `:`; default: where the worker runs.",
    )
    allowed_hosts: AllowedHosts = Field(
        (),
        description="Hosts that may be reached although they are not public: names, addresses and "
        "networks, separated by commas, each with its port (`:8080`, `:*`) if that is not a usual "
        "one.",
    )
    allowed_ports: AllowedPorts = Field(
        (), description="Ports of any host beside 80 and 443, separated by commas."
    )
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="Largest image file.")
    max_image_pixels: int = Field(
        50_000_000, ge=1, description="Most pixels of an image, checked before it is decoded."
    )
    max_video_bytes: int = Field(500 * 2**20, ge=1, description="Largest video file.")
    max_video_seconds: float = Field(4 * 3600.0, gt=0, description="Longest video.")
    max_video_pixels: int = Field(
        7680 * 4320, ge=1, description="Most pixels of a video's picture, checked before decoding."
    )
    max_video_frames: int = Field(
        5_000, ge=1, le=1_000_000, description="Most frames of one video that are captioned."
    )
    max_decoded_frames: int = Field(
        200_000,
        ge=1,
        description="Frames of one video decoded to be exact; keyframes serve from there on.",
    )
    max_decoded_frames_per_seek: int = Field(
        1_000, ge=1, description="Frames decoded to be exact about one time; then the last serves."
    )
    video_timeout_seconds: float = Field(
        1_800.0, gt=0, le=86_400, description="Whole time the decoding of one video may take."
    )
    fetch_timeout_seconds: float = Field(
        30.0, gt=0, le=3600, description="Whole time a download may take."
    )
    max_redirects: int = Field(3, ge=0, le=20, description="Redirects followed by a download.")
    scaled_jpeg: bool = Field(
        default=False, description="Decode large JPEGs faster and not quite exactly."
    )
    connections_per_host: int = Field(
        8, ge=1, le=1024, description="Downloads of a worker from one host at once."
    )
    decoders: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="Processes that decode; 0: the worker's threads; default: one a core, or 2.",
    )
    decoder_memory_bytes: int = Field(
        2 * 2**30, ge=2**26, description="Memory a decoder may take, beside its libraries."
    )
    decode_timeout_seconds: float = Field(
        30.0, gt=0, le=3600, description="How long the decoding of one frame may take."
    )

    @model_validator(mode="before")
    @classmethod
    def _split_roots(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("allowed_roots"), str):
            roots = [
                Path(part).expanduser()
                for part in values["allowed_roots"].split(os.pathsep)
                if part
            ]
            return {**values, "allowed_roots": roots}
        return values


class WorkerSettings(Section):
    """How one worker process runs."""

    concurrency: int | None = Field(
        None, ge=1, le=4096, description="Jobs in hand at once; default: three batches' worth."
    )
    heartbeat_seconds: float = Field(
        10.0, gt=0, le=3600, description="How often a worker says in SQL that it lives."
    )
    lease_seconds: float = Field(
        45.0, gt=0, le=86_400, description="A worker silent for this long has lost its jobs."
    )
    name: str = Field("captioner@%h", min_length=1, description="Name in Flower; %h is the host.")
    queues: str | None = Field(
        None,
        min_length=1,
        description="Queues to work for, in order; default: submissions, captions, captions.bulk "
        "and videos, and events too where no broker is named.",
    )


class RetrySettings(Section):
    """What becomes of a job whose attempts fail or whose workers die."""

    max_losses: int = Field(
        20, ge=1, le=10_000, description="A job whose workers died so often with it has failed."
    )
    max_retries: int = Field(
        5, ge=0, le=1000, description="A job is tried again so often after passing failures."
    )
    max_crashes: int = Field(
        3, ge=1, le=100, description="A job that alone brings down a process so often has failed."
    )
    first_delay_seconds: float = Field(
        5.0, ge=0, le=86_400, description="Before the first retry; doubled for each after it."
    )
    max_delay_seconds: float = Field(
        600.0, ge=0, le=604_800, description="Longest pause before a retry."
    )


class EventSettings(Section):
    """How events are delivered to what plugins name as their targets."""

    poll_seconds: float = Field(
        0.5, gt=0, le=60, description="How often a worker with nothing to deliver looks for more."
    )
    threads: int = Field(
        32,
        ge=1,
        le=1024,
        description="Deliveries of a worker at once; those that take longer than a second count "
        "apart, up to four times as many.",
    )
    per_target_in_flight: int = Field(
        4, ge=1, le=1024, description="Deliveries of a worker to one target at once."
    )
    lease_seconds: float = Field(
        60.0, gt=0, le=3600, description="A killed worker's deliveries are made after this long."
    )
    attempt_timeout_seconds: float = Field(
        30.0, gt=0, le=3600, description="An attempt that takes longer has failed."
    )
    delays_seconds: Annotated[tuple[float, ...], NoDecode] = Field(
        (5, 30, 120, 600, 3_600, 10_800, 28_800, 86_400),
        description="Pauses before each new attempt, separated by commas; after the last: dead.",
    )

    @field_validator("delays_seconds", mode="before")
    @classmethod
    def _split_delays(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("delays_seconds")
    @classmethod
    def _check_delays(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= delay <= 604_800 for delay in value):
            raise ValueError("each pause must be of 0 to 604800 seconds")
        return value


class RetentionSettings(Section):
    """How long what has ended is kept."""

    finished_days: int = Field(
        0, ge=0, le=36_500, description="Ended jobs are deleted after this many days; 0: never."
    )


class WebhookSettings(Section):
    """What is posted to receivers of events."""

    encryption_key: SecretStr = Field(
        SecretStr(""),
        description="Keys that endpoints' secrets are encrypted with, separated by commas, the "
        "first for new ones; empty: a file in the data folder.",
    )
    timeout_seconds: float = Field(
        15.0,
        gt=0,
        le=300,
        description="Whole time a delivery to a receiver may take; nine tenths of "
        "EVENTS__ATTEMPT_TIMEOUT_SECONDS at most.",
    )
    disable_after_days: float = Field(
        5.0,
        ge=0,
        le=365,
        description="An endpoint that only fails for so long is disabled; 0: never.",
    )


class PluginSettings(Section):
    """Which installed plugins run."""

    enabled: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None, description="Only these, separated by commas; default: all that are installed."
    )
    disabled: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Not these, separated by commas."
    )

    @model_validator(mode="before")
    @classmethod
    def _split_names(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        return {
            name: tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
            for name, value in values.items()
        }


class LogSettings(Section):
    """What is logged, and how."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level.")
    format: Literal["text", "json"] = Field("text", description="json: one object a line.")


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
        description="Folder of the embedded database and broker.",
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
        return self.worker.queues or JOB_QUEUES + (",events" if embedded else "")

    @property
    def concurrency(self) -> int:
        """Jobs a worker has in hand at once.

        Three batches' worth: one on the device, one being prepared, one of slack (measured: two
        fill 93 % of a batch of 32, three 97 %).
        """
        return self.worker.concurrency or 3 * self.engine.max_batch


def _check_scheme(url: SecretStr, variable: str, allowed: tuple[str, ...]) -> None:
    text = url.get_secret_value()
    if not text:
        return
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

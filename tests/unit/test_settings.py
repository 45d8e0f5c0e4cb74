from __future__ import annotations

from pathlib import Path

import pytest

from captioner.celery import app
from captioner.errors import SettingsError
from captioner.queues import ALL_QUEUES
from captioner.settings import Settings, load_settings


def set_environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"CAPTIONER_{name}", value)


def test_without_an_environment_everything_is_embedded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_environment(monkeypatch, DATA_DIR=str(tmp_path))
    settings = load_settings()
    assert settings.embedded_database
    assert settings.database_url == f"sqlite:///{tmp_path}/captioner.sqlite3"
    assert settings.broker_url == f"sqla+sqlite:///{tmp_path}/broker.sqlite3"
    assert settings.concurrency == 3 * settings.engine.max_batch


def test_every_level_has_a_twin_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(
        monkeypatch,
        DATABASE__URL="postgresql://u:p@db/captioner",
        MEDIA__ALLOWED_ROOTS="/a:/b",
        PLUGINS__DISABLED="metrics, other",
        ENGINE__MAX_BATCH="4",
        WORKER__CONCURRENCY="7",
    )
    settings = load_settings()
    assert settings.database_url == "postgresql+psycopg://u:p@db/captioner"
    assert settings.media.allowed_roots == (Path("/a"), Path("/b"))
    assert settings.plugins.disabled == ("metrics", "other")
    assert (settings.engine.max_batch, settings.concurrency) == (4, 7)


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, MODEL__DEVICE="")
    assert load_settings().model.device == "auto"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("MODEL__DTYPE", "int8", "not 'int8'"),
        ("ENGINE__MAX_BATCH", "0", "greater than or equal to 1"),
        ("ENGINE__MAX_BATCH", "many", "valid integer"),
        ("EVENTS__DELAYS_SECONDS", "5,,30", "valid number"),
        ("WORKER__QUEUES", "captions,event", "each must be one of submissions, "),
        ("WORKER__QUEUES", "captions,", "events, not 'captions,'"),
        ("MODEL__IDD", "x", "not a setting"),
        ("DATABSE__URL", "sqlite:///secret", "not a setting"),
        ("DATABASE__URL", "mysql://root:secret@db/x", "must begin with sqlite:// or postgresql://"),
        ("DATABASE__URL", "nonsense-secret", "must begin with"),
        ("DATABASE__URL", "postgresql+asyncpg://u:secret@db/x", "psycopg"),
        ("DATABASE__URL", "postgresql://u:secret@db:port/x", "port"),
        ("BROKER__URL", "http://user:secret@redis", "must begin with redis://"),
        ("BROKER__URL", "sentinel://a:26379;redis://:secret@b", "must begin with sentinel://"),
        ("BROKER__URL", "sentinel://a:26379;sentinel://:secret@b:x", "a port that is not"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    set_environment(monkeypatch, **{name: value})
    with pytest.raises(SettingsError) as raised:
        load_settings()
    text = str(raised.value)
    assert f"CAPTIONER_{name}" in text
    assert expected in text
    assert "\n" not in text
    assert "secret" not in text


def test_the_queues_that_a_worker_may_name_are_those_there_are() -> None:
    assert {queue.name for queue in app.conf.task_queues} == set(ALL_QUEUES)


def test_queues_may_be_written_with_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, WORKER__QUEUES=" captions, events ")
    assert load_settings().queues == "captions,events"


def test_passwords_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(
        monkeypatch, DATABASE__URL="postgresql://u:hunter2@db/x", BROKER__URL="redis://:hunter2@r"
    )
    assert "hunter2" not in repr(load_settings())


def test_every_setting_says_what_it_is() -> None:
    for name, section in Settings.model_fields.items():
        fields = getattr(section.annotation, "model_fields", {name: section})
        for field_name, field in fields.items():
            assert field.description, f"{name}.{field_name} has no description"


def test_a_name_without_levels_may_be_a_plugins_own(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, METRICS_PORT="9100")
    load_settings()


def test_a_lease_outlives_the_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, WORKER__HEARTBEAT_SECONDS="45")
    with pytest.raises(SettingsError, match="WORKER__LEASE_SECONDS must be greater"):
        load_settings()
    set_environment(monkeypatch, WORKER__LEASE_SECONDS="46", RETENTION__FINISHED_DAYS="7")
    assert load_settings().retention.finished_days == 7


@pytest.mark.parametrize(
    "variable",
    ["MEDIA__ALLOWED_HOSTS", "MEDIA__ALLOWED_PORTS", "LOG__LEVEL", "DATABASE__URL", "BROKER__URL"],
)
@pytest.mark.parametrize("value", ["https://user:hunter2@cms.example", "user:hunter2@cms.example"])
def test_a_url_in_the_wrong_place_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(f"CAPTIONER_{variable}", value)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert f"CAPTIONER_{variable}" in str(raised.value)
    assert "hunter2" not in str(raised.value)

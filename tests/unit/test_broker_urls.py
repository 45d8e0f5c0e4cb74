"""A broker's URL that its client would refuse is refused before a job is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from captioner.celery import create_app
from captioner.cli import main
from captioner.jobs import Jobs
from captioner.settings import BrokerSettings, Settings

WRONG = [
    ("redis://:hunter2@localhost/hunter2", "a database that is no number"),
    ("redis://localhost/0;redis://localhost/hunter2", "a database that is no number"),
    ("sentinel://localhost/hunter2", "a database that is no number"),
    ("redis://localhost?hunter2=bar", "an option behind its ?"),
    ("redis://localhost?socket_timeout=hunter2", "an option behind its ?"),
    ("redis+socket:///tmp/redis.sock?hunter2=3", "an option behind its ?"),
    ("rediss://localhost?ssl_hunter2=3", "an option behind its ?"),
    ("rediss://localhost?ssl_cert_reqs=hunter2", "an ssl_cert_reqs"),
]


@pytest.mark.parametrize(("url", "told"), WRONG)
@pytest.mark.parametrize("command", [["submit", "https://h/a.jpg"], ["worker"]])
def test_wrong_urls_are_one_line_and_no_job(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    url: str,
    told: str,
) -> None:
    monkeypatch.setenv("CAPTIONER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CAPTIONER_MODEL__ID", "demo")
    monkeypatch.setenv("CAPTIONER_BROKER__URL", url)

    with pytest.raises(SystemExit) as ended:
        main(command)

    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.startswith(f"captioner: CAPTIONER_BROKER__URL has {told}")
    assert "hunter2" not in line
    with Jobs(Settings(data_dir=tmp_path, broker=BrokerSettings(url=SecretStr("")))) as jobs:
        assert not sum(jobs.count_by_state().values())


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://:secret@localhost:1/3",
        "redis://localhost/0;redis://127.0.0.1/0",
        "rediss://localhost/0?ssl_cert_reqs=required&ssl_ca_certs=/ca.pem",
        "redis+socket:///tmp/redis.sock?virtual_host=3",
        "sentinel://:secret@localhost:1/0",
    ],
)
def test_right_urls_are_not_connected_to(tmp_path: Path, url: str) -> None:
    create_app(Settings(data_dir=tmp_path, broker=BrokerSettings(url=SecretStr(url)))).close()

"""What a person types in the wrong form, and with a password in it, is not repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from captioner.cli import main


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["submit", "a-user:hunter2@cms.example/a.jpg?hunter2"], "…@cms.example/a.jpg?…"),
        (["submit", "//user:hunter2@cms.example/a.jpg"], "…@cms.example/a.jpg"),
        (["submit", "/media/user:hunter2@cms.example/a.jpg"], "/media/…@cms.example/a.jpg"),
        (["submit", "--from", "https://user:hunter2@cms.example/a"], "https://cms.example/a"),
        (["caption", "https://user:hunter2@cms.example/a.jpg"], "…@cms.example/a.jpg"),
        (["submit", "a", "--webhook-url", "https:/user:hunter2@cms.example/"], ""),
        (["webhooks", "add", "user:hunter2@cms.example/"], "https://host/path"),
        (["webhooks", "secret", "https:/user:hunter2@cms.example/"], "https://host/path"),
    ],
)
def test_credentials_are_not_repeated(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.setenv("CAPTIONER_DATA_DIR", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert told in captured.err
    for secret in ("hunter2", "user:"):
        assert secret not in captured.out + captured.err

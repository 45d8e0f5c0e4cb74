from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from captioner.errors import SettingsError
from captioner.settings import Settings, WebhookSettings
from captioner.webhooks.encryption import KEY_FILE, SecretCipher, check_key, new_key, open_cipher
from captioner.webhooks.secrets import new_secret

OLD, NEW, FOREIGN = new_key(), new_key(), new_key()


def settings(folder: Path, *keys: str) -> Settings:
    return Settings(
        data_dir=folder, webhooks=WebhookSettings.model_validate({"encryption_key": ",".join(keys)})
    )


def test_what_was_encrypted_is_read_again_and_does_not_show() -> None:
    cipher, secret = SecretCipher([NEW]), new_secret()
    tokens = {cipher.encrypt(secret) for _ in range(3)}
    assert len(tokens) == 3
    for token in tokens:
        assert secret.removeprefix("whsec_") not in token
        assert cipher.decrypt(token) == secret
        assert Fernet(NEW).decrypt(token).decode() == secret


def test_the_first_key_encrypts_and_all_decrypt() -> None:
    token = SecretCipher([OLD]).encrypt("whsec_x")
    both = SecretCipher([NEW, OLD])
    assert both.decrypt(token) == "whsec_x"
    assert SecretCipher([NEW]).decrypt(both.encrypt("whsec_y")) == "whsec_y"


def test_keys_of_the_environment_are_used_and_no_file_is_made(tmp_path: Path) -> None:
    token = open_cipher(settings(tmp_path, NEW, f" {OLD} "), create=True).encrypt("whsec_x")
    assert open_cipher(settings(tmp_path, NEW)).decrypt(token) == "whsec_x"
    assert not list(tmp_path.iterdir())


def test_another_key_is_one_clear_line(tmp_path: Path) -> None:
    token = SecretCipher([FOREIGN]).encrypt("whsec_x")
    with pytest.raises(SettingsError, match=r"another key; .*CAPTIONER_WEBHOOKS__ENCRYPTION_KEY"):
        open_cipher(settings(tmp_path, NEW)).decrypt(token)


@pytest.mark.parametrize("key", ["hunter2", "é" * 44, "A" * 43, "x,y"])
def test_what_is_no_key_is_one_clear_line_without_it(tmp_path: Path, key: str) -> None:
    with pytest.raises(SettingsError, match="CAPTIONER_WEBHOOKS__ENCRYPTION_KEY") as raised:
        open_cipher(settings(tmp_path, key))
    assert key not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert key not in repr(settings(tmp_path, key))


def test_without_a_key_the_data_folder_gets_one_that_is_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    token = open_cipher(settings(folder), create=True).encrypt("whsec_x")
    path = folder / KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in folder.iterdir()] == [KEY_FILE]
    assert open_cipher(settings(folder), create=True).decrypt(token) == "whsec_x"
    assert open_cipher(settings(folder)).decrypt(token) == "whsec_x"


def test_who_only_reads_makes_no_key(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no key to read") as raised:
        open_cipher(settings(tmp_path))
    assert str(tmp_path / KEY_FILE) in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_key_that_is_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    open_cipher(settings(tmp_path), create=True)
    (tmp_path / KEY_FILE).chmod(mode)
    with pytest.raises(SettingsError, match="chmod 600"):
        open_cipher(settings(tmp_path))


def test_a_key_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_cipher(settings(tmp_path), create=True)
    if os.geteuid() == 0:
        os.chown(tmp_path / KEY_FILE, 65534, -1)
    else:  # only root can give files away: be somebody else instead
        monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(SettingsError, match=r"belongs to user .* run it as that user, or set"):
        open_cipher(settings(tmp_path))


def test_what_is_no_file_is_no_key_and_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / KEY_FILE, 0o600)
    with pytest.raises(SettingsError, match="is not a file"):
        open_cipher(settings(tmp_path))


@pytest.mark.parametrize("content", [b"", b"hunter2\n", b"A" * 43, b"\xff\x00\xfe" * 20])
@pytest.mark.parametrize("create", [True, False])
def test_a_damaged_key_file_is_named_and_kept(tmp_path: Path, content: bytes, create: bool) -> None:
    path = tmp_path / KEY_FILE
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SettingsError) as raised:
        open_cipher(settings(tmp_path), create=create)
    assert str(raised.value) == (
        f"{path} is damaged: it holds no key; bring it back from a backup, or set "
        "CAPTIONER_WEBHOOKS__ENCRYPTION_KEY to the key that was in it"
    )
    assert path.read_bytes() == content


def test_no_key_at_all_is_no_fault_before_it_is_needed(tmp_path: Path) -> None:
    check_key(settings(tmp_path))
    check_key(settings(tmp_path, NEW, OLD))
    check_key(settings(tmp_path / "no folder yet"))
    assert not list(tmp_path.iterdir())


def test_a_key_that_cannot_be_looked_for_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"cannot be kept at .*: Not a directory; set CAPTION"):
        check_key(settings(tmp_path / "file"))


def test_a_data_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="set CAPTIONER_WEBHOOKS__ENCRYPTION_KEY") as raised:
        open_cipher(settings(tmp_path / "file"), create=True)
    assert "\n" not in str(raised.value)


def test_processes_that_make_a_key_at_once_have_the_same(tmp_path: Path) -> None:
    folder, count = tmp_path / "data", 16
    start, tokens = threading.Barrier(count), []

    def make() -> None:
        start.wait()
        tokens.append(open_cipher(settings(folder), create=True).encrypt("whsec_x"))

    threads = [threading.Thread(target=make) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [open_cipher(settings(folder)).decrypt(one) for one in tokens] == ["whsec_x"] * count
    assert [one.name for one in folder.iterdir()] == [KEY_FILE]

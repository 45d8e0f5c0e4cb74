"""Signing secrets as they lie in SQL: encrypted, so that a copy of the database signs nothing."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from captioner.errors import SettingsError
from captioner.private_files import make_private_folder
from captioner.settings import Settings

KEY_FILE = "webhooks.key"
_VARIABLE = "CAPTIONER_WEBHOOKS__ENCRYPTION_KEY"
_OPEN_TO_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class SecretCipher:
    """Encrypts with the first of its keys, and decrypts with any: keys are replaced one by one."""

    def __init__(self, keys: Sequence[str]) -> None:
        """`keys` are Fernet's, as `new_key` makes them.

        Raises:
            ValueError: one of them is none.
        """
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def encrypt(self, secret: str) -> str:
        """A token for `decrypt`, different each time."""
        return self._fernet.encrypt(secret.encode()).decode()

    def decrypt(self, token: str) -> str:
        """The secret in a token.

        Raises:
            SettingsError: it was encrypted with a key that is not here.
        """
        try:
            return self._fernet.decrypt(token).decode()
        except InvalidToken:
            raise SettingsError(
                "the secret of a webhook endpoint was encrypted with another key; give every "
                f"process that signs the same {_VARIABLE}"
            ) from None


def new_key() -> str:
    """A key that nobody has had before."""
    return Fernet.generate_key().decode()


def open_cipher(settings: Settings, *, create: bool = False) -> SecretCipher:
    """The cipher of an installation: with the setting's keys, or else the data folder's.

    Args:
        settings: of this process.
        create: make a key in the data folder when there is none. Only who encrypts does: a key
            made by who decrypts could not be the right one.

    Raises:
        SettingsError: there is no key, or it cannot be read or used; the text does not show it.
    """
    keys = settings.webhooks.encryption_key.get_secret_value()
    if keys:
        try:
            return SecretCipher([key.strip() for key in keys.split(",") if key.strip()])
        except ValueError:
            raise SettingsError(
                f"{_VARIABLE} must be keys as `captioner webhooks new-key` prints them, "
                "separated by commas"
            ) from None
    path = settings.data_dir / KEY_FILE
    try:
        if create and not path.exists():
            _create(path)
        return SecretCipher([_read(path)])
    except ValueError:
        # Not made anew: no secret in SQL could be read with another one.
        raise SettingsError(
            f"{path} is damaged: it holds no key; bring it back from a backup, or set {_VARIABLE} "
            "to the key that was in it"
        ) from None
    except FileNotFoundError:
        raise SettingsError(
            f"no key to read the secrets of webhook endpoints with: set {_VARIABLE} to the one "
            f"they were made with, or copy that machine's {KEY_FILE} to {path}"
        ) from None
    except OSError as error:
        raise SettingsError(
            f"the key of webhook secrets cannot be kept at {path}: {error.strerror}; "
            f"set {_VARIABLE}"
        ) from None


def check_key(settings: Settings) -> None:
    """Find out that a key cannot be used before a delivery does; that there is none is no fault.

    Raises:
        SettingsError: see `open_cipher`.
    """
    if not settings.webhooks.encryption_key.get_secret_value():
        try:
            (settings.data_dir / KEY_FILE).lstat()
        except FileNotFoundError:
            return
        except OSError:
            pass  # said below
    open_cipher(settings)


def _read(path: Path) -> str:
    with open(path, encoding="ascii", errors="replace", opener=_without_waiting) as file:
        if os.name == "posix":
            _check_owner(path, os.fstat(file.fileno()))
        return file.read().strip()


def _without_waiting(path: str, flags: int) -> int:
    """Should a FIFO lie there, nobody waits for its writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_owner(path: Path, status: os.stat_result) -> None:
    """Refuse what others may read, or have put there."""
    user = os.geteuid()
    if not stat.S_ISREG(status.st_mode):
        raise SettingsError(f"{path} is not a file")
    if status.st_uid not in (0, user):
        raise SettingsError(
            f"{path} belongs to user {status.st_uid}, and this process runs as {user}; "
            f"run it as that user, or set {_VARIABLE}"
        )
    if status.st_mode & _OPEN_TO_OTHERS:
        raise SettingsError(f"{path} is open to others; run: chmod 600 '{path}'")


def _create(path: Path) -> None:
    """All of it or nothing, and once: two processes may be about to."""
    make_private_folder(path.parent)
    # Readable by the owner alone from its first moment.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{KEY_FILE}.")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(new_key() + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(name, path)
    except FileExistsError:
        pass  # the other was first; its key is as good
    finally:
        Path(name).unlink()

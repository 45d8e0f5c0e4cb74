"""Signing secrets as Standard Webhooks writes them: `whsec_` and base64 of 24 to 64 bytes."""

from __future__ import annotations

import base64
import secrets

PREFIX = "whsec_"
_NEW_BYTES = 32
_BYTES = range(24, 65)


def new_secret() -> str:
    """A secret that nobody has had before."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_NEW_BYTES)).decode()


def secret_key(secret: str) -> bytes:
    """The key that a secret stands for; the prefix may be missing.

    Raises:
        ValueError: it is no such secret; the text does not show it.
    """
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except ValueError:
        key = b""
    if len(key) not in _BYTES:
        raise ValueError("a secret is whsec_ followed by base64 of 24 to 64 bytes") from None
    return key

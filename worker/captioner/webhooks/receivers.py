"""The receivers that jobs name themselves: which URLs mean the same one, and the secret of each.

Each has a secret of its own, made from one that never leaves the installation. Were there one for
all, any of them could sign what it was sent, or repeat it, to any other.
"""

from __future__ import annotations

import base64
import hmac
import re

from captioner.webhooks.secrets import PREFIX, secret_key

#: Makes these secrets others than those of anything else that may be derived from the same one.
_PURPOSE = b"captioner webhook_url\0"
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
#: What may stand in a URL as it is: percent-encoded it means the same (RFC 3986). Not the dot, of
#: which some servers hold the one for a name and the other for the folder above.
_UNRESERVED = re.compile(r"[A-Za-z0-9_~-]")


def receiver_origin(url: str) -> str:
    """Scheme, host and port of a receiver, in one of their spellings.

    Raises:
        ValueError: no URL that anything could be sent to; the text does not show it.
    """
    return _parts(url)[0]


def receiver_of(url: str) -> str:
    """What stands for a receiver: its origin, and the path, in one of its spellings too.

    The query does not count: that is where what differs from job to job belongs.

    Raises:
        ValueError: as `receiver_origin` does.
    """
    origin, path = _parts(url)
    return origin + _ESCAPE.sub(_in_one_spelling, path)


def receiver_secret(root: str, receiver: str) -> str:
    """The secret of one receiver, as it is told its owner.

    Args:
        root: the secret that those of all receivers come from.
        receiver: as `receiver_of` has it.
    """
    digest = hmac.digest(secret_key(root), _PURPOSE + receiver.encode(), "sha256")
    return PREFIX + base64.b64encode(digest).decode()


def _parts(url: str) -> tuple[str, str]:
    # Only who sends needs what `media` needs.
    from captioner.media import SCHEMES, origin_of, parse_url

    parsed = parse_url(url)
    if parsed.scheme not in SCHEMES:
        raise ValueError("neither http nor https")
    return origin_of(parsed), parsed.raw_path.decode("ascii").partition("?")[0]


def _in_one_spelling(escape: re.Match[str]) -> str:
    character = chr(int(escape[0][1:], 16))
    return character if _UNRESERVED.fullmatch(character) else escape[0].upper()

"""What plugins say of a delivery, checked: what the log cannot hold must not stop recording."""

from __future__ import annotations

from numbers import Real

from captioner.errors import DeliveryError
from captioner.events import MAX_EXCERPT_CHARACTERS, Receipt

#: A column of 32 bits.
_STATUSES = range(-(2**31), 2**31)


def checked_receipt(given: object) -> Receipt:
    """The receipt that a plugin returned, or an empty one for None.

    Raises:
        TypeError: it is no receipt, or has something else in it than a number and a text.
        ValueError: the number has more than 32 bits.
    """
    if given is None:
        return Receipt()
    if not isinstance(given, Receipt):
        raise TypeError(f"gave {type(given).__name__} instead of a Receipt")
    return Receipt(status=_status(given.status), excerpt=_excerpt(given.excerpt))


def checked_error(error: DeliveryError) -> DeliveryError:
    """The same error, of which everything can be recorded.

    Raises:
        TypeError: as `checked_receipt`, or the pause asked for is no number.
        ValueError: as `checked_receipt`.
    """
    pause = error.retry_after_seconds
    if not isinstance(pause, Real | None) or isinstance(pause, bool):
        raise TypeError(f"gave {type(pause).__name__} as retry_after_seconds, not a number")
    return DeliveryError(
        str(error),
        status=_status(error.status),
        excerpt=_excerpt(error.excerpt),
        retry_after_seconds=None if pause is None else float(pause),
        permanent=bool(error.permanent),
    )


def _status(status: object) -> int | None:
    if status is None:
        return None
    if not isinstance(status, int) or isinstance(status, bool):
        raise TypeError(f"gave {type(status).__name__} as status, not a whole number")
    number = int(status)  # of an enumeration: a range would look for its member one by one
    if number not in _STATUSES:
        raise ValueError("gave a status of more than 32 bits")
    return number


def _excerpt(excerpt: object) -> str:
    if excerpt is None:
        return ""
    if not isinstance(excerpt, str):
        raise TypeError(f"gave {type(excerpt).__name__} as excerpt, not a text")
    return excerpt[:MAX_EXCERPT_CHARACTERS]  # more is not even looked at

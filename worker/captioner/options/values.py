"""What clients give as options: any JSON value, read, and shown in errors."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from captioner.errors import InvalidRequestError
from captioner.redaction import printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

#: Of names that are not known, so many are told, and so much of each.
_MOST_NAMES = 5
_MOST_CHARACTERS = 60

_shortened = reprlib.Repr()
_shortened.maxlevel = 1
_shortened.maxstring = _MOST_CHARACTERS


def as_real(value: object) -> float | None:
    """The number as a float; None for what is no finite number.

    A whole number beyond every float is none: `math.isfinite` would raise for it.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        real = float(value)
    except OverflowError:
        return None
    return real if math.isfinite(real) else None


def shown(value: object) -> str:
    """A value as an error may show it: one line, shortened, whatever it is."""
    try:
        return _shortened.repr(value)
    except ValueError:  # so many digits that Python does not write them
        return "a number of very many digits"


def shown_names(names: Iterable[str]) -> str:
    """Names as an error may show them: they could forge lines of a log, or steer a terminal."""
    told = [printable(name) for name in sorted(names)]
    cut = [n if len(n) <= _MOST_CHARACTERS else f"{n[:_MOST_CHARACTERS]}…" for n in told]
    return ", ".join([*cut[:_MOST_NAMES], "…"] if len(cut) > _MOST_NAMES else cut)


def fields_of(kind: type[DataclassInstance], values: object, name: str) -> Mapping[str, Any]:
    """JSON-like data as arguments of a dataclass; `name` is what errors call it.

    Raises:
        InvalidRequestError: it is no object, or has a name that is none of the fields.
    """
    if not isinstance(values, Mapping):
        raise InvalidRequestError(f"{name} must be a JSON object")
    known = {field.name for field in dataclasses.fields(kind)}
    if not known.issuperset(values):
        raise InvalidRequestError(f"unknown field in {name}; known are {', '.join(sorted(known))}")
    return values


def beyond_defaults(options: DataclassInstance) -> dict[str, Any]:
    """The fields of a dataclass that are not as they are by default, by name."""
    return {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default
    }

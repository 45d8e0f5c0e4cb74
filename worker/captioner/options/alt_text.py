"""How the alt text beside a caption is to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from captioner.errors import InvalidRequestError
from captioner.options.values import beyond_defaults, fields_of, shown

MAX_ALT_TEXT_CHARACTERS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AltTextOptions:
    """How the alt text beside a caption is to be; for plugins that make one, not for the model.

    Raises:
        InvalidRequestError: a value is of the wrong type or out of range.
    """

    #: Longest alt text, in characters.
    max_characters: int = 125
    #: The picture says nothing: its alt text is empty, and that is a success.
    decorative: bool = False

    def __post_init__(self) -> None:
        """Check every value."""
        if not isinstance(self.decorative, bool):
            raise InvalidRequestError(
                f"alt_text.decorative must be true or false, not {shown(self.decorative)}"
            )
        value = self.max_characters
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidRequestError(
                f"alt_text.max_characters must be a whole number, not {shown(value)}"
            )
        if not 1 <= value <= MAX_ALT_TEXT_CHARACTERS:
            raise InvalidRequestError(
                f"alt_text.max_characters must be from 1 to {MAX_ALT_TEXT_CHARACTERS}, "
                f"not {shown(value)}"
            )

    @classmethod
    def from_mapping(cls, values: object) -> Self:
        """Build options from JSON-like data.

        Raises:
            InvalidRequestError: it is no object, a name is unknown, or a value cannot be used.
        """
        return cls(**fields_of(cls, values, "options.alt_text"))

    def as_mapping(self) -> dict[str, Any]:
        """What was asked for beyond the defaults, by name."""
        return beyond_defaults(self)

"""What all groups of settings have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A group of settings; a name it does not know is an error, not silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def comma_separated(value: object) -> object:
    """Split what a variable says; everything else is as it should be."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())

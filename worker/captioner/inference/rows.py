"""State with one row per image, so that a batch can shrink, close its gaps and change memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(slots=True)
class Rows:
    """A dataclass of tensors and lists with a row per image; whatever else it has is everybody's.

    Tensors are changed in place only: a recorded CUDA graph knows them by their memory.
    """

    def _values(self) -> Iterator[tuple[str, Any]]:
        return ((one.name, getattr(self, one.name)) for one in fields(self))

    def tensors(self) -> list[Tensor]:
        """All of them, in the order of the fields."""
        return [value for _, value in self._values() if isinstance(value, Tensor)]

    def first(self, images: int) -> Self:
        """The same memory, of the first images alone."""
        rows = {name: value[:images] for name, value in self._values() if _has_rows(value)}
        return replace(self, **rows)

    def keep(self, images: Sequence[int]) -> Self:
        """The same memory, of these images in this order."""
        for name, value in self._values():
            if isinstance(value, list):
                setattr(self, name, [value[image] for image in images])
            elif _has_rows(value):
                value[: len(images)] = value[torch.tensor(images, device=value.device)]
        return self.first(len(images))

    def blank(self, images: int) -> Self:
        """Zeros for so many images; what is everybody's is copied."""
        tensors = {
            name: value.new_zeros(images, *value.shape[1:]) if value.ndim else value.clone()
            for name, value in self._values()
            if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        values = {name: value for name, value in self._values() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device) for name, value in values.items()})

    def moved_to(self, memory: Self) -> Self:
        """The same values, in the first rows of other memory."""
        moved: dict[str, Tensor] = {}
        for name, value in self._values():
            if isinstance(value, Tensor):
                target: Tensor = getattr(memory, name)
                moved[name] = (target[: len(value)] if value.ndim else target).copy_(value)
        return replace(self, **moved)


def _has_rows(value: object) -> bool:
    return isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 0)

"""What came of an evaluation, with everything that is needed to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from captioner.domain import ModelInfo
from captioner.evaluate.annotations import CaptionSet
from captioner.options import GenerationOptions

#: Metrics of the challenge that are not computed, and why.
LEFT_OUT: Final = {"SPICE": "its scorer downloads a parser's models"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The scores of one model's captions of one set."""

    captions: CaptionSet
    #: By the names of `METRICS`.
    scores: Mapping[str, float]
    model: ModelInfo
    options: GenerationOptions
    predictions: Path

    @property
    def references(self) -> int:
        """How many captions of people the model's were compared with."""
        return sum(len(picture.captions) for picture in self.captions.pictures)

    @property
    def chosen(self) -> dict[str, Any]:
        """The options that are not at their defaults."""
        default = GenerationOptions().as_mapping()
        return {k: v for k, v in self.options.as_mapping().items() if v != default[k]}

    def as_mapping(self) -> dict[str, Any]:
        """The report as programs see it: JSON values only."""
        names = ("id", "revision", "dtype", "device", "backend")
        return {
            "scores": dict(self.scores),
            "left_out": dict(LEFT_OUT),
            "images": len(self.captions.pictures),
            "references": self.references,
            "images_without_captions": self.captions.images_without_captions,
            "captions_without_image": self.captions.captions_without_image,
            "model": {name: getattr(self.model, name) for name in names},
            "options": self.options.as_mapping(),
            "predictions": str(self.predictions),
        }

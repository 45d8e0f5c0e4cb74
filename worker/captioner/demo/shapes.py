"""Coloured shapes, the things that drawn scenes are made of.

All coordinates and lengths are in units of the picture's side: (0, 0) is its top left corner,
(1, 1) its bottom right one.
"""

import math
from dataclasses import dataclass

RGB = tuple[int, int, int]

PALETTE: dict[str, RGB] = {
    "red": (214, 36, 42),
    "orange": (245, 132, 30),
    "yellow": (248, 214, 58),
    "green": (38, 150, 72),
    "blue": (38, 84, 208),
    "purple": (138, 58, 178),
    "black": (24, 24, 28),
    "white": (246, 246, 242),
}
KINDS = ("circle", "square", "triangle", "star")
#: How far each channel of a colour may lie from the palette, of 255.
TINT = 9

_STAR_WAIST = 0.45


@dataclass(frozen=True, slots=True)
class Colour:
    """A named colour in one of its tints."""

    #: A key of `PALETTE`.
    name: str
    #: The tint, each channel at most `TINT` away from the palette's.
    rgb: RGB

    def __post_init__(self) -> None:
        if any(abs(a - b) > TINT for a, b in zip(self.rgb, PALETTE[self.name], strict=True)):
            raise ValueError(f"{self.rgb} is not a tint of {self.name}")


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape of a scene."""

    #: One of `KINDS`.
    kind: str
    #: The colour it is filled with.
    colour: Colour
    #: Centre, from the left.
    x: float
    #: Centre, from the top.
    y: float
    #: Half the side of the upright square that the shape fits in.
    radius: float

    def outline(self) -> list[tuple[float, float]]:
        """The corners of the shape, in picture units; a circle's are those of its box."""
        x, y, r = self.x, self.y, self.radius
        if self.kind == "circle":
            return [(x - r, y - r), (x + r, y + r)]
        if self.kind == "square":
            side = 0.92 * r  # as heavy to the eye as a circle of radius r
            left, right, top, bottom = x - side, x + side, y - side, y + side
            return [(left, top), (right, top), (right, bottom), (left, bottom)]
        if self.kind == "triangle":
            return [(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)]
        spokes = [(r if i % 2 == 0 else _STAR_WAIST * r, i * math.pi / 5) for i in range(10)]
        return [(x + s * math.sin(turn), y - s * math.cos(turn)) for s, turn in spokes]

    def gap(self, other: "Shape") -> float:
        """The distance between the boxes around two shapes; negative when they overlap."""
        between_centres = max(abs(self.x - other.x), abs(self.y - other.y))
        return between_centres - self.radius - other.radius

    @property
    def named(self) -> str:
        """The shape with its article, as "an orange star"."""
        return f"{article(self.colour.name)} {self.colour.name} {self.kind}"


def article(word: str) -> str:
    """The indefinite article before a word: "an" before a vowel."""
    return "an" if word[0] in "aeiou" else "a"

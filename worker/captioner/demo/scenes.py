"""Drawn scenes: pictures of a few coloured shapes, each with exactly one true caption.

A `Scene` is a picture as data. Its caption is a function of that data alone, and a scene whose
caption would be open to argument (shapes that touch, two of nearly the same height, a size
between small and large) cannot be made: the constructor refuses it.

All coordinates and lengths are in units of the picture's side: (0, 0) is its top left corner,
(1, 1) its bottom right one.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

from captioner.demo.shapes import KINDS, PALETTE, TINT, Colour, Shape, article

COUNTS: dict[int, str] = {2: "two", 3: "three", 4: "four"}

#: The least distance of a shape from the edge of the picture.
MARGIN = 0.03
#: The least distance between the boxes around two shapes.
GAP = 0.06
#: The radii of single shapes; what lies between has no name.
SIZES = {"small": (0.13, 0.17), "large": (0.29, 0.38)}
COUNTED = (0.12, 0.15)
RELATED = (0.14, 0.19)
#: The least distance between the centres of two related shapes along their relation's axis.
APART = 0.42
#: The greatest distance between the centres of two related shapes across that axis.
LEVEL = 0.10

_OVERSAMPLING = 2


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture as data: shapes on a background.

    A scene holds one shape (small or large), two to four alike, or two of different colours of
    which one is clearly left of or above the other.

    Raises:
        ValueError: if the picture would have no caption, or more than one.
    """

    #: The colour behind everything.
    background: Colour
    #: The shapes, none touching another; their order does not matter.
    shapes: tuple[Shape, ...]

    def __post_init__(self) -> None:
        for shape in self.shapes:
            reach = MARGIN + shape.radius
            if not (reach <= shape.x <= 1 - reach and reach <= shape.y <= 1 - reach):
                raise ValueError(f"{shape.named} leaves the picture")
            if shape.colour.name == self.background.name:
                raise ValueError(f"{shape.named} cannot be seen on {self.background.name}")
        if any(a.gap(b) < GAP for a, b in itertools.combinations(self.shapes, 2)):
            raise ValueError("shapes touch")
        if not self._subject():
            raise ValueError("these shapes have no single caption")

    @property
    def caption(self) -> str:
        """The one true caption, in lower case: leftmost or topmost shape first."""
        behind = self.background.name
        return f"{self._subject()} on {article(behind)} {behind} background"

    def _subject(self) -> str:
        """What the picture shows, without its background; empty if that is open to argument."""
        first = self.shapes[0] if self.shapes else None
        if first is None:
            return ""
        if len(self.shapes) == 1:
            size = next(
                (name for name, (low, high) in SIZES.items() if low <= first.radius <= high), ""
            )
            return size and f"a {size} {first.colour.name} {first.kind}"
        if len({(s.kind, s.colour.name) for s in self.shapes}) == 1:
            count = COUNTS.get(len(self.shapes), "")
            return count and f"{count} {first.colour.name} {first.kind}s"
        if len(self.shapes) == 2 and len({s.colour.name for s in self.shapes}) == 2:
            (left, right), (top, bottom) = (
                sorted(self.shapes, key=lambda s: s.x),
                sorted(self.shapes, key=lambda s: s.y),
            )
            across, down = right.x - left.x, bottom.y - top.y
            if across >= APART and down <= LEVEL:
                return f"{left.named} left of {right.named}"
            if down >= APART and across <= LEVEL:
                return f"{top.named} above {bottom.named}"
        return ""


def random_scene(rng: random.Random) -> Scene:
    """Make up one scene; a quarter each single, counted, side by side, one above another.

    Args:
        rng: the source of every choice; the same state gives the same scene.
    """
    background, first, second = (_tint(rng, name) for name in rng.sample(sorted(PALETTE), 3))
    place = rng.choice((_single, _counted, _related, _related))
    while True:
        # Shapes are placed freely, and placed again when the scene refuses them: one set of rules,
        # and no grid to be seen.
        try:
            return Scene(background, place(rng, first, second))
        except ValueError:
            continue


def scenes(seed: int, count: int) -> Iterator[Scene]:
    """Yield `count` scenes; the same seed gives the same ones, however many are asked for."""
    rng = random.Random(seed)  # noqa: S311  pictures, not secrets
    for _ in range(count):
        yield random_scene(rng)


def draw(scene: Scene, size_pixels: int = 384) -> Image.Image:
    """Draw a scene, antialiased.

    Args:
        scene: what to draw.
        size_pixels: the side of the square picture.

    Returns:
        An RGB picture of `size_pixels` by `size_pixels`.
    """
    side = size_pixels * _OVERSAMPLING
    picture = Image.new("RGB", (side, side), scene.background.rgb)
    canvas = ImageDraw.Draw(picture)
    for shape in scene.shapes:
        outline = [(x * side, y * side) for x, y in shape.outline()]
        if shape.kind == "circle":
            canvas.ellipse(outline, fill=shape.colour.rgb)
        else:
            canvas.polygon(outline, fill=shape.colour.rgb)
    return picture.reduce(_OVERSAMPLING)


def _single(rng: random.Random, colour: Colour, _: Colour) -> tuple[Shape, ...]:
    radius = rng.uniform(*rng.choice(tuple(SIZES.values())))
    return (_anywhere(rng, rng.choice(KINDS), colour, radius),)


def _counted(rng: random.Random, colour: Colour, _: Colour) -> tuple[Shape, ...]:
    kind, radius = rng.choice(KINDS), rng.uniform(*COUNTED)
    count = rng.choice(tuple(COUNTS))
    while True:
        placed: list[Shape] = []
        for _attempt in range(10 * count):
            shape = _anywhere(rng, kind, colour, radius)
            if all(shape.gap(other) >= GAP for other in placed):
                placed.append(shape)
            if len(placed) == count:
                return tuple(placed)


def _related(rng: random.Random, first: Colour, second: Colour) -> tuple[Shape, ...]:
    kinds = rng.choices(KINDS, k=2)
    radii = [rng.uniform(*RELATED), rng.uniform(*RELATED)]
    reach, reach2 = MARGIN + radii[0], MARGIN + radii[1]
    along = rng.uniform(reach, 1 - reach2 - APART)
    along2 = rng.uniform(along + APART, 1 - reach2)
    across = rng.uniform(reach, 1 - reach)
    across2 = across + rng.uniform(-LEVEL, LEVEL)
    centres = [(along, across), (along2, across2)]
    if rng.random() >= 0.5:
        centres = [(across, along), (across2, along2)]
    return tuple(
        Shape(kind, colour, x, y, radius)
        for kind, colour, (x, y), radius in zip(kinds, (first, second), centres, radii, strict=True)
    )


def _anywhere(rng: random.Random, kind: str, colour: Colour, radius: float) -> Shape:
    reach = MARGIN + radius
    x, y = (rng.uniform(reach, 1 - reach) for _ in range(2))
    return Shape(kind, colour, x, y, radius)


def _tint(rng: random.Random, name: str) -> Colour:
    red, green, blue = (
        min(255, max(0, channel + rng.randint(-TINT, TINT))) for channel in PALETTE[name]
    )
    return Colour(name, (red, green, blue))

"""A contact sheet: the sampled frames of a video in a grid, with their times and captions."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from captioner.timeline import clock

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Cells of one sheet at most; of more frames every second, third… is drawn.
MAX_CELLS = 60

_CELL_PIXELS = 320
_GAP = 16
_LINES = 3
_TEXT_SIZE, _TITLE_SIZE = 15, 20
_LINE_PIXELS, _TITLE_PIXELS = 20, 28
_INK, _PALE, _PAPER = (32, 32, 32), (110, 110, 110), (255, 255, 255)
#: Stranger shapes are drawn as these, width over height.
_FLATTEST, _TALLEST = 3.0, 0.5
_QUALITY = 88

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One frame of the sheet."""

    #: uint8 `[height, width, 3]`, RGB, squared or not.
    pixels: NDArray[np.uint8]
    seconds: float
    text: str
    #: Width over height that it is to be seen with.
    aspect_ratio: float = 1.0


def contact_sheet(cells: Sequence[Cell], title: str, subtitle: str = "") -> bytes:
    """Draw a sheet.

    Args:
        cells: in order, at least one; row by row.
        title: what it is of.
        subtitle: one line more, cut where it is too long.

    Returns:
        A JPEG file.
    """
    ratio = min(_FLATTEST, max(_TALLEST, cells[0].aspect_ratio))
    width, height = _CELL_PIXELS, round(_CELL_PIXELS / ratio)
    font, large = ImageFont.load_default(_TEXT_SIZE), ImageFont.load_default(_TITLE_SIZE)
    texts = [_wrapped(cell.text, font, width) for cell in cells]
    row_pixels = height + (max(map(len, texts)) + 1) * _LINE_PIXELS + _GAP
    columns = _columns(len(cells), width / row_pixels)
    rows, top = math.ceil(len(cells) / columns), _GAP + 2 * _TITLE_PIXELS
    sheet = Image.new(
        "RGB", (columns * (width + _GAP) + _GAP, top + rows * row_pixels + _GAP), _PAPER
    )
    canvas = ImageDraw.Draw(sheet)
    room = sheet.width - 2 * _GAP
    canvas.text((_GAP, _GAP), _cut(title, large, room), _INK, large)
    canvas.text((_GAP, _GAP + _TITLE_PIXELS), _cut(subtitle, font, room), _PALE, font)
    for number, (cell, lines) in enumerate(zip(cells, texts, strict=True)):
        row, column = divmod(number, columns)
        x, y = _GAP + column * (width + _GAP), top + row * row_pixels
        picture = Image.fromarray(cell.pixels).resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(picture, (x, y))
        canvas.text((x, y + height + 4), clock(cell.seconds), _PALE, font)
        for line, text in enumerate(lines, 1):
            canvas.text((x, y + height + 4 + line * _LINE_PIXELS), text, _INK, font)
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _columns(count: int, cell_ratio: float) -> int:
    """So many that the sheet is about as wide as a screen, 3 to 2."""
    return max(1, min(count, round(math.sqrt(count * 1.5 / cell_ratio))))


def _wrapped(text: str, font: Font, room: float) -> list[str]:
    """At most so many lines as there is room for; the last one is cut."""
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < _LINES - 1:
        taken = 1
        while taken < len(words) and font.getlength(" ".join(words[: taken + 1])) <= room:
            taken += 1
        lines.append(_cut(" ".join(words[:taken]), font, room))
        words = words[taken:]
    return [*lines, _cut(" ".join(words), font, room)] if words else lines


def _cut(text: str, font: Font, room: float) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}…") > room:
        text = text[: int(len(text) * 0.9)]
    return f"{text.rstrip()}…"

"""Contact sheets: each frame in its cell, as wide as it was, with a text that fits."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from captioner.contact_sheet import MAX_CELLS, Cell, contact_sheet

COLOURS = [(200, 30, 30), (30, 160, 60), (40, 60, 200), (240, 220, 40), (120, 40, 160)]


def cell(colour: tuple[int, int, int], text: str = "a cat", ratio: float = 1.0) -> Cell:
    return Cell(np.full((32, 32, 3), colour, np.uint8), 1.5, text, ratio)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG"
    return image.convert("RGB")


def patches(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray[tuple[int, int]]:
    """Where a colour is, as [top, left, bottom, right]."""
    near = np.abs(np.asarray(image, int) - colour).max(axis=2) < 12
    rows, columns = np.where(near.any(axis=1))[0], np.where(near.any(axis=0))[0]
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])


@pytest.mark.parametrize("ratio", [1.0, 16 / 9, 9 / 16])
def test_frames_are_in_reading_order_with_their_own_proportions(ratio: float) -> None:
    image = opened(contact_sheet([cell(colour, ratio=ratio) for colour in COLOURS], "a film"))
    boxes = [patches(image, colour) for colour in COLOURS]
    for top, left, bottom, right in boxes:
        assert (right - left) / (bottom - top) == pytest.approx(ratio, rel=0.03)
    corners = [(int(box[0]), int(box[1])) for box in boxes]
    assert corners == sorted(corners)
    assert len(set(corners)) == len(COLOURS)


def test_texts_are_drawn_below_their_frames_and_nowhere_else() -> None:
    image = opened(contact_sheet([cell(COLOURS[0], "a cat on a couch")], "film.mp4", "a cat"))
    empty = opened(contact_sheet([cell(COLOURS[0], "")], "", ""))
    bottom = patches(image, COLOURS[0])[2]
    dark = np.asarray(image.convert("L"))[bottom:] < 100
    assert (
        dark.sum() > (np.asarray(empty.convert("L"))[patches(empty, COLOURS[0])[2] :] < 100).sum()
    )


def test_a_long_text_stays_in_its_cell() -> None:
    long = "x" * 500 + " supercalifragilisticexpialidocious" * 20
    cells = [cell(COLOURS[0], long), cell(COLOURS[1], "")]
    image = opened(contact_sheet(cells, long, long))
    first, second = patches(image, COLOURS[0]), patches(image, COLOURS[1])
    gap = np.asarray(image.convert("L"))[first[2] + 2 :, first[3] + 1 : second[1] - 1]
    assert gap.min() > 200


def test_the_largest_sheet_is_still_a_jpeg() -> None:
    cells = [cell(COLOURS[n % 5], "a b c d e f g " * 9, ratio=0.01) for n in range(MAX_CELLS)]
    width, height = opened(contact_sheet(cells, "t")).size
    assert max(width, height) < 12_000

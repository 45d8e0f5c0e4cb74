"""What the demo model learns from: batches of fresh scenes, as arrays.

Per picture its pixels, its caption with or without a prompt, and a map of what lies where.
"""

import random
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from captioner.demo.scenes import Scene, draw, random_scene
from captioner.demo.shapes import KINDS, PALETTE
from captioner.demo.vocabulary import PROMPTS, vocabulary

Array = npt.NDArray[np.generic]
AnyArray = TypeVar("AnyArray")

IMAGE_SIZE = 96
PATCH_SIZE = 16
PATCHES = IMAGE_SIZE // PATCH_SIZE
#: Side in pixels of the training pictures before they are resized, as real ones are; twice the
#: model's own is enough, and four times cheaper to draw than the demo's 384.
DRAWN_SIZE = 192
#: The share of captions that follow a prompt.
PROMPTED = 0.4
IGNORED = -100


class Batch(NamedTuple, Generic[AnyArray]):
    """A batch of pictures with what there is to learn from them; numpy arrays or tensors."""

    #: uint8 (batch, 3, side, side).
    pixels: AnyArray
    #: Token ids (batch, length): [DEC], prompt if any, caption, [SEP], padding.
    ids: AnyArray
    #: The ids that are to be learnt, elsewhere `IGNORED`: on padding, and on prompts, so that they
    #: never leak into captions made without one.
    labels: AnyArray
    #: What lies in the middle of each patch (batch, patches): 0 for nothing, else 1 + the kind's
    #: index in `KINDS`.
    kinds: AnyArray
    #: The index in `PALETTE` of the colour there.
    colours: AnyArray
    #: 1 for the patches that hold the centre of a shape, else 0.
    centres: AnyArray


def lessons(seed: int, batch_size: int) -> Iterator[Batch[Array]]:
    """Yield batches of fresh scenes without end; the same seed gives the same ones."""
    rng = random.Random(f"training {seed}")  # noqa: S311  pictures, not secrets
    while True:
        batch = [random_scene(rng) for _ in range(batch_size)]
        pixels = np.stack([_resized(scene) for scene in batch]).transpose(0, 3, 1, 2)
        kinds, colours, centres = np.stack([_map(scene) for scene in batch], axis=1)
        yield Batch(np.ascontiguousarray(pixels), *_tokens(batch, rng), kinds, colours, centres)


def _resized(scene: Scene) -> npt.NDArray[np.uint8]:
    """A scene's pixels at the model's size, got as real pictures' are: (side, side, 3)."""
    picture = draw(scene, DRAWN_SIZE)
    return np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def _map(scene: Scene) -> npt.NDArray[np.int64]:
    """What each patch of a scene shows: (3, patches), the kinds, colours, centres of a `Batch`."""
    names = list(PALETTE)
    kinds, colours, centres = found = np.zeros((3, PATCHES, PATCHES), np.int64)
    colours[:] = names.index(scene.background.name)
    middles = (np.arange(PATCHES) + 0.5) / PATCHES
    for shape in scene.shapes:
        rows = np.abs(middles - shape.y) < shape.radius
        columns = np.abs(middles - shape.x) < shape.radius
        covered = rows[:, None] & columns
        kinds[covered] = 1 + KINDS.index(shape.kind)
        colours[covered] = names.index(shape.colour.name)
        centres[int(shape.y * PATCHES), int(shape.x * PATCHES)] = 1
    return found.reshape(3, -1)


def _tokens(
    batch: list[Scene], rng: random.Random
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The ids and labels of a `Batch`."""
    words = vocabulary()
    rows = []
    for scene in batch:
        prompt = rng.choice(PROMPTS).split() if rng.random() < PROMPTED else []
        given = [len(words), *(words[word] for word in prompt)]
        rows.append((given, [words[word] for word in (*scene.caption.split(), "[SEP]")]))
    length = max(len(given) + len(learnt) for given, learnt in rows)
    ids = np.full((len(rows), length), words["[PAD]"], np.int64)
    labels = np.full((len(rows), length), IGNORED, np.int64)
    for row, (given, learnt) in enumerate(rows):
        end = len(given) + len(learnt)
        ids[row, :end] = given + learnt
        labels[row, len(given) : end] = learnt
    return ids, labels

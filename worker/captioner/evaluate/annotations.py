"""Caption sets in the format of COCO: which pictures there are and what people said of them.

    {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "…"}]}

Whatever else the file holds (licences, sizes, ids of captions) is not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.evaluate.errors import EvaluationError

#: COCO numbers its pictures; other sets name them.
ImageId = int | str


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture and its captions, at least one."""

    id: ImageId
    #: Its path below the folder of the pictures.
    file: str
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CaptionSet:
    """What of a file can be scored, and how much of it cannot."""

    pictures: tuple[Picture, ...]
    #: Images that nobody captioned: there is nothing to compare with.
    images_without_captions: int
    #: Captions of images that are not listed, as where a set was cut down to fewer images.
    captions_without_image: int


def read_captions(path: Path) -> CaptionSet:
    """Read a caption set.

    Raises:
        EvaluationError: it is no such file, or no image in it has a caption.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise EvaluationError(f"{path}: {error.strerror or 'cannot be read'}") from error
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path} is not JSON: {error}") from error
    try:
        return _caption_set(document)
    except EvaluationError as error:
        raise EvaluationError(f"{path} is not a COCO caption set: {error}") from None


def missing(pictures: Sequence[Picture], folder: Path) -> list[Picture]:
    """The pictures whose files are not in the folder."""
    return [picture for picture in pictures if not (folder / picture.file).is_file()]


def _caption_set(document: object) -> CaptionSet:
    files: dict[ImageId, str] = {}
    for where, image in _entries(document, "images"):
        image_id = _id(where, image, "id")
        if image_id in files:
            raise EvaluationError(f"{where}: the id {image_id!r} occurs twice")
        files[image_id] = _text(where, image, "file_name")
    captions: dict[ImageId, list[str]] = {image_id: [] for image_id in files}
    strays = 0
    for where, annotation in _entries(document, "annotations"):
        image_id, caption = _id(where, annotation, "image_id"), _text(where, annotation, "caption")
        if image_id in captions:
            captions[image_id].append(caption)
        else:
            strays += 1
    pictures = tuple(
        Picture(image_id, files[image_id], tuple(said))
        for image_id, said in captions.items()
        if said
    )
    if not pictures:
        raise EvaluationError(
            f"none of its {len(files)} images has a caption ({strays} captions are of other images)"
        )
    return CaptionSet(pictures, len(files) - len(pictures), strays)


def _entries(document: object, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of one of the two lists, each with how to call it in an error."""
    entries = document.get(name) if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise EvaluationError(f'it has no list "{name}"')
    for number, entry in enumerate(entries):
        where = f"{name}[{number}]"
        if not isinstance(entry, dict):
            raise EvaluationError(f"{where} is not an object")
        yield where, entry


def _id(where: str, entry: dict[str, Any], name: str) -> ImageId:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise EvaluationError(f'{where} has no "{name}" that is a number or text')
    return value


def _text(where: str, entry: dict[str, Any], name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        raise EvaluationError(f'{where} has no text "{name}"')
    return value

"""An example of a plugin for captioner.

- `example://colour/10/20/30` is a picture of that colour;
- every caption ends with the name of its source's scheme, where that is `example`;
- the events of jobs with `{"example": true}` in their metadata are written to a file.

`CAPTIONER_EXAMPLE_FILE` names the file: one JSON object an event.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image

from captioner import (
    Caption,
    CaptionRequest,
    DeliveryError,
    ErrorCode,
    Event,
    Job,
    JobError,
    Media,
    Receipt,
    Source,
    hookimpl,
)


@hookimpl
def open_source(source: Source, folder: Path) -> Media | None:
    """Draw what an `example:` source asks for."""
    if source.scheme != "example":
        return None
    kind, *numbers = source.uri.removeprefix("example://").split("/")
    if kind != "colour" or len(numbers) != 3 or not all(n.isdecimal() for n in numbers):
        raise JobError(
            ErrorCode.FETCH_FAILED, "write example://colour/RED/GREEN/BLUE", retryable=False
        )
    path = folder / "picture.png"
    Image.new("RGB", (20, 10), tuple(map(int, numbers))).save(path)
    return Media(path, source.display)


@hookimpl
def process_caption(caption: Caption, request: CaptionRequest) -> Caption | None:
    """Say where the picture is from."""
    if request.source.scheme != "example":
        return None
    return replace(caption, text=f"{caption.text}, an example")


@hookimpl
def event_targets(event: Event, job: Job) -> Iterator[str]:
    """The file, for jobs that ask for it."""
    if job.metadata.get("example") is True:
        yield "file"


@hookimpl
def deliver_event(event: Event, job: Job) -> Receipt:
    """Write a line; who reads it knows by `id` what it has read before."""
    path = os.environ.get("CAPTIONER_EXAMPLE_FILE")
    if path is None:
        raise DeliveryError("CAPTIONER_EXAMPLE_FILE is not set", permanent=True)
    line = json.dumps({"id": event.id, "type": event.type, "caption": job.caption})
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    return Receipt(excerpt=f"{len(line)} characters")

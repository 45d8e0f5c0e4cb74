"""What a person types, made into sources and generation options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from captioner.domain import Source
from captioner.errors import InvalidRequestError
from captioner.options import GenerationOptions
from captioner.request_json import options_from
from captioner.settings import GenerationSettings

Prompt = Annotated[str | None, typer.Option("--prompt", help="Text the caption starts with.")]
Option = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        metavar="NAME=VALUE",
        help="Generation option, such as num_beams=5; may be repeated.",
    ),
]


def parse_options(
    prompt: str | None, options: Sequence[str] | None, defaults: GenerationSettings
) -> GenerationOptions:
    """Options from `NAME=VALUE` texts, over the installation's defaults.

    Raises:
        InvalidRequestError: a name is unknown or a value cannot be used.
    """
    return options_from(_given(options or ()), prompt, defaults.model_dump())


def _given(options: Sequence[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for text in options:
        name, separator, value = text.partition("=")
        if not separator:
            raise InvalidRequestError(f"--option {text!r} must have the form NAME=VALUE")
        try:
            given[name.strip()] = json.loads(value)
        except ValueError:
            given[name.strip()] = value
    return given


def parse_metadata(text: str | None) -> Mapping[str, Any]:
    """A JSON object, or an empty one for None.

    Raises:
        InvalidRequestError: the text is something else.
    """
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InvalidRequestError("--metadata must be a JSON object, such as '{\"asset\": 17}'")
    return value


def parse_source(text: str) -> Source:
    """A URL as it is; anything else as a local file, which must exist.

    Raises:
        InvalidRequestError: there is no such file, or it is a folder.
    """
    source = Source(text)
    if source.scheme != "file" or text[:5].lower() == "file:":
        return source
    path = Path(text).expanduser()
    if path.is_dir():
        raise InvalidRequestError(f"{text} is a folder")
    if not path.exists():
        raise InvalidRequestError(f"{text}: no such file")
    return Source(str(path.absolute()))

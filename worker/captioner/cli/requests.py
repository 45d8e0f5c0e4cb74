"""What a person types, made into sources and generation options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from captioner.cli.local_paths import Kind, from_root, is_file, kind_of
from captioner.errors import InvalidRequestError
from captioner.options import AltTextOptions, GenerationOptions, VideoOptions
from captioner.request_json import options_from
from captioner.settings import GenerationSettings
from captioner.source import Source

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
Decorative = Annotated[
    bool, typer.Option("--decorative", help="The picture says nothing: its alt text is empty.")
]
MaxAltText = Annotated[
    int | None,
    typer.Option(
        "--max-alt-text", min=1, metavar="N", help="Longest alt text in characters; default: 125."
    ),
]
Frames = Annotated[
    int | None,
    typer.Option("--frames", metavar="N", help="Of a video: how many frames; default: 8."),
]
Every = Annotated[
    float | None,
    typer.Option("--every", metavar="SECONDS", help="Of a video: a frame every so many seconds."),
]
Fps = Annotated[
    float | None, typer.Option("--fps", metavar="N", help="Of a video: so many frames a second.")
]
Keyframes = Annotated[
    bool, typer.Option("--keyframes", help="Of a video: its keyframes, which cost least.")
]
At = Annotated[
    str | None,
    typer.Option("--at", metavar="SECONDS,...", help="Of a video: the frames at these times."),
]
VideoMode = Annotated[
    str | None,
    typer.Option(
        "--video-mode",
        metavar="MODE",
        help="Of a video: per_frame (default), joint (one caption of all frames together, "
        "experimental) or both.",
    ),
]


def parse_video(
    *,
    frames: int | None,
    every: float | None,
    fps: float | None,
    keyframes: bool,
    at: str | None,
    mode: str | None,
) -> VideoOptions:
    """What was asked for of videos.

    Raises:
        InvalidRequestError: a value is out of range, or two contradict each other.
    """
    ways: dict[str, tuple[bool, dict[str, Any]]] = {
        "--every": (every is not None, {"strategy": "interval", "interval_seconds": every}),
        "--fps": (fps is not None, {"strategy": "fps", "fps": fps}),
        "--keyframes": (keyframes, {"strategy": "keyframes"}),
        "--at": (at is not None, {"strategy": "timestamps", "timestamps": _seconds(at or "")}),
    }
    named = [flag for flag, (given, _) in ways.items() if given]
    if len(named) > 1:
        raise InvalidRequestError(f"{' and '.join(named)} exclude each other")
    asked = dict(ways[named[0]][1]) if named else {}
    if frames is not None:
        asked["frames"] = frames
    if mode is not None:
        asked["mode"] = mode
    return VideoOptions.from_mapping(asked)


def _seconds(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InvalidRequestError(f"--at must be seconds such as 1.5,3, not {text!r}") from None


def parse_alt_text(*, decorative: bool, max_characters: int | None) -> AltTextOptions:
    """What was asked for of alt texts.

    Raises:
        InvalidRequestError: the length is out of range.
    """
    asked = {} if max_characters is None else {"max_characters": max_characters}
    return AltTextOptions.from_mapping({"decorative": decorative, **asked})


def parse_options(
    prompt: str | None, options: Sequence[str] | None, defaults: GenerationSettings
) -> GenerationOptions:
    """Options from `NAME=VALUE` texts, over the installation's defaults.

    Raises:
        InvalidRequestError: a name is unknown or a value cannot be used.
    """
    given = _given(options or ())
    if "alt_text" in given:
        raise InvalidRequestError("for alt_text there are --decorative and --max-alt-text")
    if "video" in given:
        raise InvalidRequestError("for video there are --frames, --every, --fps, --keyframes, --at")
    return options_from(given, prompt, defaults.model_dump())


def _given(options: Sequence[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for text in options:
        name, separator, value = text.partition("=")
        if not separator:
            raise InvalidRequestError(f"--option {text!r} must have the form NAME=VALUE")
        try:
            given[name.strip()] = json.loads(value)
        except (ValueError, RecursionError):  # text, such as a prompt that begins with [
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
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequestError("--metadata must be a JSON object, such as '{\"asset\": 17}'")
    return value


def parse_source(text: str) -> Source:
    """A URL as it is; anything else as a local file, which must exist.

    A file may be called as a URL of a plugin's scheme could be, `scan:1.png`; if it is there, it
    is meant.

    Raises:
        InvalidRequestError: there is no such file, it is a folder, or nobody may look.
    """
    source = Source(text)
    if source.scheme in ("data", "http", "https") or text[:5].lower() == "file:":
        return source
    if source.scheme != "file" and ("://" in text or not is_file(text)):
        return source
    path = _named(text)
    kind = kind_of(path)
    if kind is Kind.FOLDER:
        raise InvalidRequestError(f"{source.display} is a folder")
    if kind is Kind.NOTHING:
        raise InvalidRequestError(f"{source.display}: no such file")
    return Source(str(from_root(path)))


def _named(text: str) -> Path:
    """The path; `~` is the home of somebody, unless a file is called so."""
    path = Path(text)
    if not text.startswith("~") or kind_of(path) is not Kind.NOTHING:
        return path
    try:
        return path.expanduser()
    except RuntimeError:  # nobody of this name has a home
        return path

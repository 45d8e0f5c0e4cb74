"""What may be fetched and decoded, and at what cost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from captioner.allowed_hosts import AllowedHost, parse_allowed_hosts
from captioner.settings.section import Section, comma_separated


def _allowed_hosts(value: object) -> object:
    return parse_allowed_hosts(value) if isinstance(value, str) else value


AllowedHosts = Annotated[tuple[AllowedHost, ...], BeforeValidator(_allowed_hosts), NoDecode]
AllowedPorts = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65_535)], ...], BeforeValidator(comma_separated), NoDecode
]


class MediaSettings(Section):
    """What may be read, and how much of it."""

    allowed_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (Path(),),
        description="Folders of local sources, separated by `:`; default: where the worker runs.",
    )
    allowed_hosts: AllowedHosts = Field(
        (),
        description="Hosts that may be reached although they are not public: names, addresses and "
        "networks, separated by commas, each with its port (`:8080`, `:*`) if that is not a usual "
        "one.",
    )
    allowed_ports: AllowedPorts = Field(
        (), description="Ports of any host beside 80 and 443, separated by commas."
    )
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="Largest image file.")
    max_image_pixels: int = Field(
        50_000_000, ge=1, description="Most pixels of an image, checked before it is decoded."
    )
    max_video_bytes: int = Field(500 * 2**20, ge=1, description="Largest video file.")
    max_video_seconds: float = Field(4 * 3600.0, gt=0, description="Longest video.")
    max_video_pixels: int = Field(
        7680 * 4320, ge=1, description="Most pixels of a video's picture, checked before decoding."
    )
    max_video_frames: int = Field(
        5_000, ge=1, le=1_000_000, description="Most frames of one video that are captioned."
    )
    max_decoded_frames: int = Field(
        200_000,
        ge=1,
        description="Frames of one video decoded to be exact; keyframes serve from there on.",
    )
    max_decoded_frames_per_seek: int = Field(
        1_000, ge=1, description="Frames decoded to be exact about one time; then the last serves."
    )
    video_timeout_seconds: float = Field(
        1_800.0, gt=0, le=86_400, description="Whole time the decoding of one video may take."
    )
    fetch_timeout_seconds: float = Field(
        30.0, gt=0, le=3600, description="Whole time a download may take."
    )
    max_redirects: int = Field(3, ge=0, le=20, description="Redirects followed by a download.")
    scaled_jpeg: bool = Field(
        default=False, description="Decode large JPEGs faster and not quite exactly."
    )
    connections_per_host: int = Field(
        8, ge=1, le=1024, description="Downloads of a worker from one host at once."
    )
    decoders: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="Processes that decode; 0: the worker's threads; default: one a core, or 2.",
    )
    decoder_memory_bytes: int = Field(
        2 * 2**30, ge=2**26, description="Memory a decoder may take, beside its libraries."
    )
    decode_timeout_seconds: float = Field(
        30.0, gt=0, le=3600, description="How long the decoding of one frame may take."
    )

    @model_validator(mode="before")
    @classmethod
    def _split_roots(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("allowed_roots"), str):
            roots = [
                Path(part).expanduser()
                for part in values["allowed_roots"].split(os.pathsep)
                if part
            ]
            return {**values, "allowed_roots": roots}
        return values

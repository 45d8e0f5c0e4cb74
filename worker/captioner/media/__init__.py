"""Media: from a source to a file on this machine, and from the file to frames for the model."""

from __future__ import annotations

from captioner.media.decode import decode_image
from captioner.media.files import LocalFolders
from captioner.media.frames import still_frame
from captioner.media.guard import SCHEMES
from captioner.media.hosts import HostSlots
from captioner.media.post import Answer, post_http
from captioner.media.sizes import check_size
from captioner.media.sources import OPENERS, open_source
from captioner.media.still import StillImages
from captioner.media.urls import origin_of, parse_url

__all__ = [
    "OPENERS",
    "SCHEMES",
    "Answer",
    "HostSlots",
    "LocalFolders",
    "StillImages",
    "check_size",
    "decode_image",
    "open_source",
    "origin_of",
    "parse_url",
    "post_http",
    "still_frame",
]

"""Output in encodings that lack a character, and of names of files that are in none."""

from __future__ import annotations

import codecs
import io
import json
import sys

_ERRORS = "captioner_escapes"


def _escapes(error: UnicodeError) -> tuple[str, int]:
    """As JSON writes it, so that JSON remains JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(_ERRORS, _escapes)


def escape_what_cannot_be_encoded() -> None:
    """Let standard output and error fail for no character."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)

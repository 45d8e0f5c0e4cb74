"""How often a JPEG's decoder goes over the whole picture: once for each of its scans.

A scan that says nothing needs 76 bytes for 49 million pixels, and its decoder all of its time.
"""

from __future__ import annotations

import re

#: Progressive pictures have about ten. libtiff draws the line for JPEGs in TIFFs here, too.
MAX_SCANS = 100
#: A picture of the greatest size whose metadata fills it has hundreds. More are not walked through,
#: or the walk itself would take time.
MAX_SEGMENTS = 10_000

#: What begins a segment: no stuffed zero of entropy-coded data, no filling, no restart within it.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
#: Below this, none has a length: libjpeg looks for the next one right behind it.
_FIRST_WITH_LENGTH = 0xC0


def objection_to_scans(data: bytes) -> str | None:
    """What speaks against decoding a JPEG; None for all that cameras and programs write.

    Segments are found as libjpeg finds them, garbage between them skipped: what it would take for a
    scan is counted, and what looks like one in metadata is not.
    """
    scans, at = 0, 0
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or (marker := found[1][0]) == _END:
            return None
        at = found.end()
        if marker == _START or marker < _FIRST_WITH_LENGTH:
            continue
        scans += marker == _SCAN
        if scans > MAX_SCANS:
            return f"more than {MAX_SCANS} scans"
        at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return f"more than {MAX_SEGMENTS} segments"

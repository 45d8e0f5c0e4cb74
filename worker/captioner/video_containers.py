"""Which kinds of video file are read, told by their first bytes and never by their names.

Every demuxer is one more parser that strangers can feed: the list is short on purpose. What merely
refers to other files (playlists, concat scripts, SDP) is text, and so on no list.
"""

from __future__ import annotations

#: Bytes that `find_container` needs at most.
PREFIX_BYTES = 1024

#: Major brands of ISO media files that are pictures.
_PICTURE_BRANDS = frozenset(
    {b"avif", b"avis", b"crx ", b"heic", b"heim", b"heis", b"heix", b"hevc", b"hevm", b"hevs",
     b"hevx", b"j2ki", b"jpeg", b"jpgs", b"jxl ", b"miaf", b"mif1", b"mif2", b"msf1"}
)  # fmt: skip
#: What older QuickTime files begin with, none of which says that it is one.
_QUICKTIME_ATOMS = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_STARTS = (
    (b"\x1aE\xdf\xa3", "matroska"),
    (b"OggS", "ogg"),
    (b"FLV\x01", "flv"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02", "mxf"),
)
#: Bytes of a transport stream's packet, and where its sync byte is; Blu-ray puts a time before it.
_TRANSPORT_PACKETS = ((188, 0), (192, 4))
_SYNC = 0x47


def find_container(head: bytes) -> str | None:
    """The container of a file.

    Args:
        head: its first `PREFIX_BYTES`, or all there are.

    Returns:
        FFmpeg's name of the one demuxer that reads it; None for what is no video, among it pictures
        in ISO files (AVIF, HEIC).
    """
    for start, name in _STARTS:
        if head.startswith(start):
            return name
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    if head[4:8] == b"ftyp":
        return None if head[8:12] in _PICTURE_BRANDS else "mov"
    if head[4:8] in _QUICKTIME_ATOMS:
        return "mov"
    return "mpegts" if _is_transport_stream(head) else None


def _is_transport_stream(head: bytes) -> bool:
    return any(
        len(head) > 2 * size + offset
        and all(head[offset + size * number] == _SYNC for number in range(3))
        for size, offset in _TRANSPORT_PACKETS
    )

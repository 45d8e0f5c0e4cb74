"""What a file is that is not read, by its first bytes: whoever sent it hears what to convert."""

from __future__ import annotations

from captioner.media.formats import FORMAT_NAMES

#: How the kinds of video are named to people (`captioner.video_containers` tells them).
VIDEO_NAMES = (
    "MP4", "QuickTime", "Matroska", "WebM", "AVI", "MPEG-TS", "MPEG-PS", "MXF", "FLV", "Ogg",
)  # fmt: skip

_PICTURES = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "a Photoshop document"),
    (b"%PDF-", "PDF"),
    (b"\x1f\x8b", "compressed with gzip"),
)
#: In what begins with `<`, the first of them that is found.
_TEXTS = ((b"<!doctype html", "a web page"), (b"<html", "a web page"), (b"<svg", "SVG"))
_VIDEOS = (
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media"),
    (b"\x00\x00\x01\xb3", "an MPEG stream without a container"),
    (b"\x00\x00\x00\x01\x67", "an H.264 stream without a container"),
)
_HEIF_BRANDS = frozenset(
    {b"heic", b"heim", b"heis", b"heix", b"hevc", b"hevm", b"hevs", b"hevx", b"mif1", b"msf1"}
)


def told(head: bytes) -> str:
    """What the content is, if that can be told, and what it should be.

    Args:
        head: the first bytes of a file that is neither a picture nor a video of a known kind.
    """
    pictures, videos = ", ".join(FORMAT_NAMES), ", ".join(VIDEO_NAMES)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return f"HEIC, and none of {pictures}"
    for start, name in _PICTURES:
        if head.startswith(start):
            return f"{name}, and none of {pictures}"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for mark, name in _TEXTS:
        if text.startswith(b"<") and mark in text:
            return f"{name}, and none of {pictures}"
    for start, name in _VIDEOS:
        if head.startswith(start):
            return f"{name}, and none of {videos}"
    return f"none of {pictures}"

"""How files of pictures and of videos usually end: for guesses before one has been opened."""

from __future__ import annotations

PICTURE_SUFFIXES = frozenset(
    {
        ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff",
        ".webp",
    }
)  # fmt: skip
VIDEO_SUFFIXES = frozenset(
    {
        ".3g2", ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
        ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm",
    }
)  # fmt: skip

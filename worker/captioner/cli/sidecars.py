"""Captions in files beside their pictures, where no other file is lost for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from captioner.cli.local_paths import one_line, why
from captioner.domain import Caption
from captioner.errors import CaptionerError
from captioner.timeline import segments
from captioner.vtt import web_vtt


class Sidecars:
    """Where the captions of files go that are captioned together.

    Those of `a.png` go to `a.txt`; but to `a.png.txt` where `a.jpg` stands beside it.
    """

    def __init__(self, files: Iterable[Path], *, overwrite: bool) -> None:
        """`overwrite` what is there already and says something else."""
        self._sharing = Counter(path.with_suffix("") for path in set(map(Path.absolute, files)))
        self._overwrite = overwrite

    def write(self, file: Path, captions: Sequence[Caption]) -> None:
        """The first caption as text; of a video its segments as WebVTT, too.

        Raises:
            CaptionerError: a file cannot be written, or is there already.
        """
        self._write(file, ".txt", captions[0].text + "\n")
        if segments(captions):
            self._write(file, ".vtt", web_vtt(captions))

    def _write(self, file: Path, suffix: str, text: str) -> None:
        shared = self._sharing[file.absolute().with_suffix("")] > 1
        path = Path(f"{file}{suffix}") if shared else file.with_suffix(suffix)
        content = text.encode()
        try:
            if not self._overwrite and path.exists() and path.read_bytes() != content:
                raise CaptionerError(
                    f"{one_line(path)} is there already; to replace it add --overwrite"
                )
            path.write_bytes(content)
        except OSError as error:
            raise CaptionerError(f"{one_line(path)}: {why(error)}") from None

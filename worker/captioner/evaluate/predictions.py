"""The captions made so far: a file of JSON lines that an interrupted evaluation goes on with.

    {"image_id": 1, "file": "a.jpg", "caption": "…", "continuation": "…", "score": -0.3,
     "model": {"id": …, "revision": …, "dtype": …, "backend": …}, "options": {…}}

Every line says by which model and options it was made, so that captions of two kinds can never be
mixed into one result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from captioner.domain import ModelInfo
from captioner.errors import CaptionerError, InvalidRequestError
from captioner.evaluate.annotations import ImageId, Picture
from captioner.evaluate.errors import EvaluationError
from captioner.options import GenerationOptions
from captioner.redaction import printable

#: How every line begins: what a half-written line must look like before it is cut off.
START = b'{"image_id": '
#: What decides a model's captions. Its id does not: a folder may be named in many ways.
IDENTITY = ("revision", "dtype", "backend")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model said of one picture."""

    image_id: ImageId
    #: The picture's path below the folder of the pictures.
    file: str
    #: Prompt and continuation.
    caption: str
    #: The generated text alone, which is what is scored.
    continuation: str
    #: Mean log-probability of the generated tokens.
    score: float


class Predictions:
    """Captions by image id, backed by a file. Use it as a context.

    Raises:
        EvaluationError: the file holds something else, or captions of another model or of other
            options; it is then left as it is.
    """

    def __init__(self, path: Path, model: ModelInfo, options: GenerationOptions) -> None:
        """Read what is there, and cut off a last line that was not written to its end."""
        self.path = path
        self._options = options
        self._model = {name: getattr(model, name) for name in ("id", *IDENTITY)}
        self._done: dict[ImageId, Prediction] = {}
        try:
            content = path.read_bytes() if path.exists() else b""
            *lines, rest = content.split(b"\n")
            for number, line in enumerate(lines, start=1):
                self._read(f"{path}, line {number}", line)
            if not (rest.startswith(START) or START.startswith(rest)):
                raise EvaluationError(f"{path}, line {len(lines) + 1}: not a prediction")
            # Unbuffered: a line is in the file, or not, when `add` returns.
            self._file = path.open("ab", buffering=0)
            self._file.truncate(len(content) - len(rest))
        except OSError as error:
            raise EvaluationError(f"{path}: {error.strerror or 'cannot be written'}") from error

    def has(self, picture: Picture) -> bool:
        """True for a picture that is captioned already.

        Raises:
            EvaluationError: that was another picture of the same id.
        """
        known = self._done.get(picture.id)
        if known is not None and known.file != picture.file:
            raise EvaluationError(
                f"{self.path} is of another caption set: image {printable(str(picture.id))} was "
                f"{printable(known.file)}, now {printable(picture.file)}; name another file with "
                "--predictions"
            )
        return known is not None

    def __getitem__(self, image_id: ImageId) -> Prediction:
        """What was said of a picture."""
        return self._done[image_id]

    def add(self, prediction: Prediction) -> None:
        """Write one line; it outlives the process at once.

        Raises:
            CaptionerError: it could not be written, or not to its end.
        """
        row = {**asdict(prediction), "model": self._model, "options": self._options.as_mapping()}
        line = json.dumps(row).encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            raise CaptionerError(f"{self.path}: {error.strerror}") from error
        if written != len(line):
            raise CaptionerError(f"{self.path}: no space left")
        self._done[prediction.image_id] = prediction

    def __enter__(self) -> Self:
        """The file is open already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, where: str, line: bytes) -> None:
        try:
            row = json.loads(line)
            prediction = Prediction(**{name: row.pop(name) for name in Prediction.__slots__})
            model, options = dict(row["model"]), GenerationOptions.from_mapping(row["options"])
        except (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            RecursionError,
            InvalidRequestError,
        ):
            raise EvaluationError(f"{where}: not a prediction") from None
        was = {name: model.get(name) for name in IDENTITY} | options.as_mapping()
        now = {name: self._model[name] for name in IDENTITY} | self._options.as_mapping()
        if was != now:
            raise EvaluationError(
                f"{where} was made by {model.get('id')} with {_differing(was, now)}, "
                f"but asked for is {self._model['id']} with {_differing(now, was)}; "
                "name another file with --predictions"
            )
        self._done[prediction.image_id] = prediction


def _differing(values: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(v)}" for name, v in values.items() if v != others[name])

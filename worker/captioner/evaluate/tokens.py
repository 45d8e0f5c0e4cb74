"""Captions as the metrics see them: cut into words by Stanford's PTB tokenizer, in Java.

The jar, its arguments and the punctuation that is dropped are pycocoevalcap's, hence the words too.
Its own wrapper writes into the folder it is installed in, which may be read-only, and prints.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from captioner.errors import CaptionerError
from captioner.evaluate.errors import EvaluationError

TOKENIZER = "edu.stanford.nlp.process.PTBTokenizer"


def java() -> str:
    """The path of a `java` that runs.

    Raises:
        EvaluationError: there is none.
    """
    path = shutil.which("java")
    # A launcher may be there without the runtime behind it, as on a Mac.
    if path is None or subprocess.run([path, "-version"], capture_output=True).returncode:  # noqa: S603
        raise EvaluationError(
            "this needs Java for METEOR and the tokenizer: install a Java runtime, 8 or later, "
            "so that the command `java` works"
        )
    return path


def tokenize(captions: Sequence[str]) -> list[str]:
    """Each caption as lower-case words with single spaces between, without punctuation.

    Raises:
        CaptionerError: the tokenizer failed.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    # A caption is a line; split() also knows the line ends that only Java takes for such.
    lines = "".join(" ".join(caption.split()) + "\n" for caption in captions)
    command = [java(), "-cp", str(jar), TOKENIZER, "-preserveLines", "-lowerCase"]
    result = subprocess.run(  # noqa: S603  # no shell, and nothing of the captions in the arguments
        [*command, "-encoding", "UTF-8"],
        input=lines.encode(errors="replace"),  # JSON can hold half a character
        capture_output=True,
        check=False,
    )
    tokenized = result.stdout.decode(errors="replace").split("\n")[:-1]
    if result.returncode or len(tokenized) != len(captions):
        said = result.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise CaptionerError(f"the tokenizer failed (code {result.returncode}): {said}")
    dropped = frozenset(ptbtokenizer.PUNCTUATIONS)
    return [
        " ".join(word for word in line.split(" ") if word and word not in dropped)
        for line in tokenized
    ]

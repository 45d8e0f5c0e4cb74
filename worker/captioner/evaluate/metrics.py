"""BLEU, METEOR, ROUGE-L and CIDEr, by `pycocoevalcap`.

SPICE is left out: its scorer downloads the models of a parser when it first runs. CIDEr weighs
words by how rare they are in the set, so a set of one picture has a CIDEr of 0.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from captioner.errors import CaptionerError
from captioner.evaluate.annotations import ImageId
from captioner.evaluate.errors import EvaluationError
from captioner.evaluate.tokens import java, tokenize

BLEU: Final = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
METRICS: Final = (*BLEU, "METEOR", "ROUGE-L", "CIDEr")

#: Words with single spaces between, a list of captions for each picture.
Tokens = Mapping[ImageId, list[str]]


def require_metrics() -> None:
    """Find out before the first caption whether the last one can be scored.

    Raises:
        EvaluationError: pycocoevalcap or Java is not there.
    """
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise EvaluationError("this needs pycocoevalcap; run: pip install 'captioner[evaluate]'")
    java()


def score(
    references: Mapping[ImageId, Sequence[str]], predictions: Mapping[ImageId, str]
) -> dict[str, float]:
    """Score one prediction for each picture against what people said.

    Args:
        references: at least one caption for each picture.
        predictions: of the same pictures; an empty text is a prediction too.

    Returns:
        The `METRICS`, 1.0 being perfect except for CIDEr, which goes up to 10.

    Raises:
        EvaluationError: pycocoevalcap or Java is not there.
        CaptionerError: Java failed.
    """
    require_metrics()
    owners = [image_id for image_id, captions in references.items() for _ in captions]
    said = [caption for captions in references.values() for caption in captions]
    words = tokenize([*said, *(predictions[image_id] for image_id in references)])
    truth: dict[ImageId, list[str]] = {image_id: [] for image_id in references}
    for image_id, line in zip(owners, words, strict=False):
        truth[image_id].append(line)
    made = {image_id: [line] for image_id, line in zip(truth, words[len(said) :], strict=True)}
    scores = {**overlap(truth, made), "METEOR": _meteor(truth, made)}
    return {name: scores[name] for name in METRICS}


def overlap(truth: Tokens, made: Tokens) -> dict[str, float]:
    """The metrics that compare words alone, without Java."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, _ = Bleu(len(BLEU)).compute_score(truth, made, verbose=0)
    return {
        **dict(zip(BLEU, map(float, bleu), strict=True)),
        "ROUGE-L": float(Rouge().compute_score(truth, made)[0]),
        "CIDEr": float(Cider().compute_score(truth, made)[0]),
    }


def _meteor(truth: Tokens, made: Tokens) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    try:
        return float(scorer.compute_score(truth, made)[0])
    except (OSError, ValueError) as error:
        # It asks its process line by line and takes an empty answer for a number.
        raise CaptionerError("the Java process of METEOR ended before its work was done") from error
    finally:
        _end(scorer)


def _end(scorer: Any) -> None:
    """End METEOR's process; left to the scorer, pipes stay open and a failure ends in a deadlock.

    The scorer asks for its lock once more when it is deleted, and keeps it when something is
    raised in between.
    """
    process = scorer.meteor_p
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        with suppress(OSError):  # what is still to be written finds no reader
            pipe.close()
    if scorer.lock.locked():
        scorer.lock.release()

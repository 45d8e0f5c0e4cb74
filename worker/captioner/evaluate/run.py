"""Caption the pictures of a set that are not captioned yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from captioner.cores import available_cores
from captioner.domain import CaptionRequest
from captioner.errors import ErrorCode, JobError
from captioner.evaluate.annotations import Picture
from captioner.evaluate.predictions import Prediction, Predictions
from captioner.options import GenerationOptions
from captioner.pipeline import Pipeline
from captioner.source import Source

#: Wrong with the options, not with the picture: no other picture would fare better.
HOPELESS = frozenset({ErrorCode.INVALID_REQUEST, ErrorCode.PROMPT_TOO_LONG})


def caption_missing(
    pipeline: Pipeline,
    pictures: Sequence[Picture],
    folder: Path,
    options: GenerationOptions,
    predictions: Predictions,
    *,
    max_batch: int,
    advance: Callable[[], None] = lambda: None,
) -> list[tuple[Picture, JobError]]:
    """Caption, in shared batches, every picture that has no prediction yet.

    Args:
        pipeline: with a started engine, and leave to read the pictures.
        pictures: of the set.
        folder: where their files are.
        options: of every caption.
        predictions: where the captions go, one by one, in the order of the pictures; when this is
            interrupted, also those of the batches in hand.
        max_batch: of the engine, which is to be kept full.
        advance: called after each picture.

    Returns:
        The pictures that could not be captioned, and why.

    Raises:
        JobError: the options cannot work with this model.
    """

    def run(picture: Picture) -> Prediction | JobError:
        path = (folder / picture.file).resolve()
        try:
            request = CaptionRequest(source=Source(str(path)), options=options)
            best = pipeline.caption(request).captions[0]
        except JobError as error:
            return error
        return Prediction(picture.id, picture.file, best.text, best.continuation, best.score)

    todo = [picture for picture in pictures if not predictions.has(picture)]
    failed: list[tuple[Picture, JobError]] = []
    executor = ThreadPoolExecutor(max_batch + available_cores())
    futures = [executor.submit(run, picture) for picture in todo]
    try:
        for picture, future in zip(todo, futures, strict=True):
            result = future.result()
            if isinstance(result, Prediction):
                predictions.add(result)
            elif result.code in HOPELESS:
                raise result
            else:
                failed.append((picture, result))
            advance()
    finally:
        # Who interrupts waits for what is in hand, which is kept, and not for thousands more.
        executor.shutdown(cancel_futures=True)
        for picture, future in zip(todo, futures, strict=True):
            if not future.cancelled() and not predictions.has(picture):
                result = future.result()
                if isinstance(result, Prediction):
                    predictions.add(result)
    return failed

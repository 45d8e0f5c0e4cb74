"""Running a model on a batch: what an engine asks of a model, and what it does when that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from captioner.domain import Caption
from captioner.errors import ErrorCode, JobError, ModelLoadError, describe
from captioner.model import CaptionModel, Generated
from captioner.options import GenerationOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: What becomes of one picture: captions, best first, or why there are none.
Result: TypeAlias = list[Caption] | JobError

logger = logging.getLogger(__name__)


def load_model(load: Callable[..., CaptionModel], *arguments: object) -> CaptionModel:
    """Call `load`, and say in one line what went wrong.

    Raises:
        ModelLoadError: whatever `load` raised.
    """
    try:
        return load(*arguments)
    except ModelLoadError:
        raise
    except Exception as error:
        logger.debug("model load failed", exc_info=True)
        raise ModelLoadError(f"the model cannot be loaded: {describe(error)}") from error


def run_batch(
    model: CaptionModel,
    images: Sequence[NDArray[np.uint8]],
    options: Sequence[GenerationOptions],
) -> Iterator[dict[int, Result]]:
    """Caption a batch, whatever happens.

    A batch that fails is run again one by one, so that only the picture at fault fails.

    Args:
        model: what captions.
        images: uint8 `[image_size, image_size, 3]` each.
        options: of each image.

    Yields:
        Results by position, as they come; every position exactly once.
    """
    refused: dict[int, Result] = {}
    valid: list[int] = []
    for position, one in enumerate(options):
        try:
            model.check(one)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is this picture's result
            refused[position] = _as_job_error(error)
        else:
            valid.append(position)
    if refused:
        yield refused
    if not valid:
        return
    try:
        generated = model.generate([images[i] for i in valid], [options[i] for i in valid])
        results: dict[int, Result] = dict(zip(valid, map(_captions, generated), strict=True))
    except Exception as error:  # noqa: BLE001  # as above
        if len(valid) > 1:
            logger.warning(
                "a batch of %d failed and is run again one by one: %s", len(valid), describe(error)
            )
            for position in valid:
                for alone in run_batch(model, [images[position]], [options[position]]):
                    yield {position: alone[0]}
            return
        results = {valid[0]: _as_job_error(error)}
    yield results


def _captions(generated: Sequence[Generated]) -> list[Caption]:
    return [
        Caption(
            rank=rank,
            text=one.text,
            continuation=one.continuation,
            score=one.score,
            beam_score=one.beam_score,
        )
        for rank, one in enumerate(generated)
    ]


def _as_job_error(error: Exception) -> JobError:
    if isinstance(error, JobError):
        return error
    if isinstance(error, MemoryError):
        return JobError(ErrorCode.OUT_OF_MEMORY, "the picture does not fit into memory")
    logger.error("the model failed", exc_info=error)
    return JobError(ErrorCode.INTERNAL, f"the model failed: {describe(error)}")

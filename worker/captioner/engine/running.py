"""Running a model on a batch: what an engine asks of a model, and what it does when that fails."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from captioner.domain import Caption
from captioner.domain.captions import check_text
from captioner.errors import (
    DeviceLostError,
    ErrorCode,
    InvalidRequestError,
    JobError,
    ModelLoadError,
    SettingsError,
    describe,
)
from captioner.model import CaptionModel, Generated, JointCaptionModel
from captioner.options import GenerationOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: What becomes of a picture, or of several together: captions, best first, or why there are none.
Result: TypeAlias = list[Caption] | JobError

logger = logging.getLogger(__name__)


def load_model(load: Callable[..., CaptionModel], *arguments: object) -> CaptionModel:
    """Call `load`, and say in one line what went wrong.

    Raises:
        ModelLoadError: whatever `load` raised.
        SettingsError: a setting is wrong, and says so itself.
    """
    try:
        return load(*arguments)
    except (ModelLoadError, SettingsError, KeyboardInterrupt):
        raise
    except BaseException as error:  # also SystemExit: only who started this may end the process
        logger.debug("model load failed", exc_info=True)
        raise ModelLoadError(f"the model cannot be loaded: {describe(error)}") from error


def run_batch(
    model: CaptionModel,
    images: Sequence[NDArray[np.uint8]],
    options: Sequence[GenerationOptions],
) -> Iterator[dict[int, Result]]:
    """Caption a batch, whatever happens.

    A batch that fails is run again one by one, so that only what is at fault fails.

    Args:
        model: what captions.
        images: uint8 `[image_size, image_size, 3]` each, or several to be captioned together:
            `[pictures, image_size, image_size, 3]`.
        options: of each.

    Yields:
        Results by position, as they come; every position exactly once.

    Raises:
        DeviceLostError: nothing more can be run in this process.
    """
    refused = _refused(model, images, options)
    valid = [position for position in range(len(options)) if position not in refused]
    if refused:
        yield refused
    if not valid:
        return
    try:
        generated = _generate(model, [images[i] for i in valid], [options[i] for i in valid])
        results: dict[int, Result] = dict(zip(valid, map(_result, generated), strict=True))
    except DeviceLostError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is, it is somebody's result
        if len(valid) > 1:
            logger.warning(
                "a batch of %d failed and is run again one by one: %s", len(valid), describe(error)
            )
            for position in valid:
                for alone in run_batch(model, [images[position]], [options[position]]):
                    yield {position: alone[0]}
            return
        results = {valid[0]: as_job_error(error)}
    yield results


def _refused(
    model: CaptionModel,
    images: Sequence[NDArray[np.uint8]],
    options: Sequence[GenerationOptions],
) -> dict[int, Result]:
    """By position, what cannot be captioned at all."""
    refused: dict[int, Result] = {}
    for position, one in enumerate(options):
        try:
            _check(model, images[position], one)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is this one's result
            refused[position] = as_job_error(error)
    return refused


def _check(model: CaptionModel, image: NDArray[np.uint8], options: GenerationOptions) -> None:
    if image.ndim == 4 and not isinstance(model, JointCaptionModel):
        raise InvalidRequestError(
            f"the model {model.info.id} cannot caption several pictures together; "
            "for videos it has video.mode per_frame"
        )
    model.check(options)


def _generate(
    model: CaptionModel,
    images: Sequence[NDArray[np.uint8]],
    options: Sequence[GenerationOptions],
) -> Sequence[Sequence[Generated]]:
    """In one call, so that what is to be captioned together shares the batch with what is not."""
    if isinstance(model, JointCaptionModel) and any(image.ndim == 4 for image in images):
        return model.generate_joint(
            [[image] if image.ndim == 3 else list(image) for image in images], options
        )
    return model.generate(images, options)


def _result(generated: Sequence[Generated]) -> Result:
    """Captions as the others know them, if there is a number behind each.

    What a plugin's model gives is checked here: plugins that come after it would be blamed.
    """
    for one in generated:
        check_text("text", one.text)
        check_text("continuation", one.continuation)
    if not generated:
        raise ValueError("gave no caption of a picture")
    scores = [score for one in generated for score in (one.score, one.beam_score)]
    if not all(score is None or math.isfinite(score) for score in scores):
        # Words chosen by what is no number are any words.
        return JobError(
            ErrorCode.INTERNAL,
            "the model's scores are no numbers: its weights are damaged, or too large for its type "
            "(CAPTIONER_MODEL__DTYPE=float32 tells)",
        )
    return [
        Caption(
            rank=rank,
            text=one.text,
            continuation=one.continuation,
            score=float(one.score),  # of an array or a tensor, too, which would not get out of here
            beam_score=None if one.beam_score is None else float(one.beam_score),
        )
        for rank, one in enumerate(generated)
    ]


def as_job_error(error: BaseException) -> JobError:
    """What the client is told of whatever a model raised."""
    if isinstance(error, JobError):
        return error
    if isinstance(error, MemoryError):
        return JobError(ErrorCode.OUT_OF_MEMORY, "it does not fit into memory")
    logger.error("the model failed", exc_info=error)
    return JobError(ErrorCode.INTERNAL, f"the model failed: {describe(error)}")

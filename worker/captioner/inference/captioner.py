"""What every backend offers, and the one function that loads a model."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from captioner.errors import InvalidRequestError, SettingsError
from captioner.model import MAX_JOINT_PICTURES
from captioner.options import GenerationOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captioner.domain import ModelInfo
    from captioner.inference.pixels import Picture

#: What can run a model, and where it is; the first is the default.
BACKENDS = {
    "fast": "captioner.inference.fast:FastCaptioner",
    "transformers": "captioner.inference.reference:ReferenceCaptioner",
}


@dataclass(frozen=True, slots=True)
class GeneratedCaption:
    """One caption of one image."""

    #: Prompt and generated text, as the tokenizer writes them: lower case, "a woman's dog".
    text: str
    #: The generated text alone.
    continuation: str
    #: The generated tokens, without prompt, [SEP] and padding.
    token_ids: tuple[int, ...]
    #: Mean log-probability of the generated tokens, [SEP] included when it was generated, as the
    #: model gave it: before penalties, blocking and temperature.
    score: float
    #: What beams are ranked by: the sum of log-probabilities after penalties, divided by the
    #: number of generated tokens ** length_penalty. None without beams.
    beam_score: float | None


class Captioner(Protocol):
    """A resident model.

    `generate` is for one thread at a time; `check` may be called from any.
    """

    @property
    def info(self) -> ModelInfo:
        """Which model this is, as stamped on results."""

    def check(self, options: GenerationOptions) -> None:
        """Refuse, without running the model, options that it cannot serve.

        Raises:
            JobError: `prompt_too_long` when [DEC], prompt and `max_new_tokens` exceed the model's
                positions.
            InvalidRequestError: the prompt is not valid Unicode.
        """

    def generate(
        self,
        images: Sequence[Picture],
        options: GenerationOptions | Sequence[GenerationOptions],
    ) -> list[list[GeneratedCaption]]:
        """Caption images.

        Args:
            images: PIL images, or uint8 arrays `[height, width, 3]` in RGB, of any size.
            options: one for all images or one per image.

        Returns:
            Per image its `num_return_sequences` captions, best first: by `beam_score` where beams
            were searched, else by `score`.

        Raises:
            JobError: as `check`; `out_of_memory` when the device has too little.
            InvalidRequestError: an image is of another shape or type.
            ValueError: there are not as many options as images.
        """

    def generate_joint(
        self,
        groups: Sequence[Sequence[Picture]],
        options: GenerationOptions | Sequence[GenerationOptions],
    ) -> list[list[GeneratedCaption]]:
        """Caption groups of pictures, such as the frames of a video, with one caption per group.

        The decoder attends to the states of all pictures of a group at once, as the BLIP paper
        feeds videos to the model. Their order within a group does not matter. No BLIP was trained
        for it: experimental.

        Args:
            groups: 1 to `MAX_JOINT_PICTURES` pictures each.
            options: one for all groups or one per group.

        Returns:
            Per group what `generate` returns per image.

        Raises:
            InvalidRequestError: a group has no pictures, or too many; or as `generate`.
            JobError: as `generate`.
            ValueError: as `generate`.
        """

    def close(self) -> None:
        """Give the memory back; may be called twice, `generate` not any more."""


def load_captioner(
    model_id: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    backend: str = "fast",
) -> Captioner:
    """Load a BLIP captioning model.

    Args:
        model_id: a hub id, a local folder in Hugging Face format, or `demo` for the small model
            in this package.
        revision: branch, tag or commit of a hub id.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`, `float16`, `bfloat16`, `float32` or `float64`; `auto` is float16 on CUDA,
            bfloat16 on CPUs that multiply it in hardware, else float32.
        backend: `fast`, or `transformers`, the reference, one image at a time.

    Raises:
        ModelLoadError: the model cannot be found, read or placed on the device.
        SettingsError: there is no such backend.
    """
    if backend not in BACKENDS:
        raise SettingsError(
            f"unknown backend {backend!r} (CAPTIONER_MODEL__BACKEND); known: {', '.join(BACKENDS)}"
        )
    # Imported here: torch takes seconds, transformers more, and command lines need only the names.
    from captioner.inference.checkpoint import open_checkpoint
    from captioner.inference.devices import resolve_device, resolve_dtype

    # These first: a wrong one must not cost a download.
    place = resolve_device(device)
    precision = resolve_dtype(dtype, place)
    checkpoint = open_checkpoint(model_id, revision)
    module, name = BACKENDS[backend].split(":")
    captioner: Captioner = getattr(import_module(module), name)(
        checkpoint, device=place, dtype=precision
    )
    return captioner


def check_groups(groups: Sequence[Sequence[Picture]]) -> None:
    """Check the number of pictures in each group.

    Raises:
        InvalidRequestError: a group has none, or more than `MAX_JOINT_PICTURES`.
    """
    for group in groups:
        if not 1 <= len(group) <= MAX_JOINT_PICTURES:
            raise InvalidRequestError(
                f"a joint caption needs 1 to {MAX_JOINT_PICTURES} pictures, not {len(group)}"
            )


def options_per_image(
    options: GenerationOptions | Sequence[GenerationOptions], images: int
) -> list[GenerationOptions]:
    """Spread one set of options over all images, or check that there is one for each.

    Raises:
        ValueError: there are not as many options as images.
    """
    if isinstance(options, GenerationOptions):
        return [options] * images
    if len(options) != images:
        raise ValueError(
            f"{len(options)} sets of options for {images} images; give one or {images}"
        )
    return list(options)

"""The fast backend: batches of images through our own BLIP, with transformers' results."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captioner.domain import ModelInfo
from captioner.errors import DeviceLostError, ModelLoadError, describe
from captioner.inference.acceleration import accelerate
from captioner.inference.captioner import (
    GeneratedCaption,
    check_groups,
    options_per_image,
)
from captioner.inference.captions import Generated, Request
from captioner.inference.checkpoint import Checkpoint
from captioner.inference.devices import device_error, dtype_name
from captioner.inference.fused_weights import load_blip
from captioner.inference.generate import generate
from captioner.inference.normalisation import prepare
from captioner.inference.pixels import Picture, resize
from captioner.inference.tokenizer import load_tokenizer
from captioner.options import GenerationOptions

#: Images encoded at once. More gain nothing, their activations would fill the memory, and a GPU
#: would wait until all of them are stacked.
_ENCODED_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class _Prepared:
    """One caption to be made."""

    #: uint8 `[side, side, 3]` per picture.
    pixels: list[NDArray[np.uint8]]
    prompt: tuple[int, ...]
    options: GenerationOptions
    seed: int


class FastCaptioner:
    """A resident BLIP behind the `Captioner` interface; `model` is the model itself."""

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> None:
        """Load the model onto the device.

        Raises:
            ModelLoadError: it cannot be read, or does not fit the device's memory.
        """
        self._text, self._pixels = checkpoint.architecture.text, checkpoint.pixels
        self._tokenizer = load_tokenizer(checkpoint.folder, self._text)
        self._device, self._dtype = device, dtype
        model = load_blip(checkpoint, device, dtype)
        try:
            self._runner = accelerate(model)
        except torch.OutOfMemoryError as error:
            raise ModelLoadError(
                f"the model {checkpoint.model_id!r} does not fit {device}: {describe(error)}"
            ) from None
        self.model = model
        self._closed = False
        self._info = ModelInfo(
            id=checkpoint.model_id,
            revision=checkpoint.revision,
            dtype=dtype_name(dtype),
            device=str(device),
            backend="fast",
            image_size=checkpoint.pixels.size,
        )

    @property
    def info(self) -> ModelInfo:
        """Which model this is, as stamped on results."""
        return self._info

    def check(self, options: GenerationOptions) -> None:
        """See `Captioner.check`."""
        self._tokenizer.prompt_ids(options)

    def generate(
        self,
        images: Sequence[Picture],
        options: GenerationOptions | Sequence[GenerationOptions],
    ) -> list[list[GeneratedCaption]]:
        """See `Captioner.generate`."""
        return self.generate_joint([[image] for image in images], options)

    def generate_joint(
        self,
        groups: Sequence[Sequence[Picture]],
        options: GenerationOptions | Sequence[GenerationOptions],
    ) -> list[list[GeneratedCaption]]:
        """See `Captioner.generate_joint`."""
        if self._closed:
            raise RuntimeError("this captioner is closed")
        check_groups(groups)
        each = options_per_image(options, len(groups))
        # Every prompt before the first picture: what is refused costs nothing.
        prompts = [self._tokenizer.prompt_ids(one) for one in each]
        jobs = [
            _Prepared(
                pixels=[resize(picture, self._pixels.size) for picture in group],
                prompt=prompt,
                options=one,
                seed=secrets.randbits(63) if one.seed is None else one.seed,
            )
            for group, prompt, one in zip(groups, prompts, each, strict=True)
        ]
        with torch.inference_mode():
            return self._caption(jobs) if jobs else []

    def close(self) -> None:
        """See `Captioner.close`."""
        if not self._closed:
            del self._runner, self.model
            self._closed = True
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _caption(self, jobs: Sequence[_Prepared]) -> list[list[GeneratedCaption]]:
        """Caption all at once, or half by half where the device has too little memory."""
        try:
            return self._caption_at_once(jobs)
        except RuntimeError as error:
            meant = device_error(error, self._device)
            if meant is None:
                raise
            if isinstance(meant, DeviceLostError):
                raise meant from error
        # Not within `except`: there the error still holds the memory that was too much.
        if self._device.type == "cuda":
            self._runner.release()
            torch.cuda.empty_cache()
        if len(jobs) == 1:
            raise meant
        half = len(jobs) // 2
        return self._caption(jobs[:half]) + self._caption(jobs[half:])

    def _caption_at_once(self, jobs: Sequence[_Prepared]) -> list[list[GeneratedCaption]]:
        requests: list[Request] = []
        pixels: list[NDArray[np.uint8]] = []
        for job in jobs:
            images = tuple(range(len(pixels), len(pixels) + len(job.pixels)))
            requests.append(Request(images, job.prompt, job.options, job.seed))
            pixels += job.pixels
        states = self._encode(pixels)
        results = generate(self._runner, states, requests, self._text.sep_token_id)
        return [
            [self._caption_of(job.prompt, one) for one in generated]
            for job, generated in zip(jobs, results, strict=True)
        ]

    def _encode(self, pixels: Sequence[NDArray[np.uint8]]) -> Tensor:
        """The image states, `[len(pixels), N, W]`."""
        parts = [
            self._runner.encode(self.model_input(pixels[start : start + _ENCODED_AT_ONCE]))
            for start in range(0, len(pixels), _ENCODED_AT_ONCE)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def model_input(self, pixels: Sequence[NDArray[np.uint8]]) -> Tensor:
        """What the encoder takes of uint8 `[side, side, 3]` each: `[B, side, side, 3]`."""
        # Pinned, the next images are stacked while these are on their way.
        pinned = self._device.type == "cuda"
        stacked = torch.empty(len(pixels), *pixels[0].shape, dtype=torch.uint8, pin_memory=pinned)
        for place, picture in zip(stacked, pixels, strict=True):
            # PyTorch copies on several threads, but wants arrays that could be written, and plain.
            plain = picture.flags.writeable and picture.flags.c_contiguous
            place.copy_(torch.from_numpy(picture if plain else np.array(picture, order="C")))
        on_device = stacked.to(self._device, non_blocking=True)
        return prepare(on_device, self._dtype, self._pixels)

    def _caption_of(self, prompt: tuple[int, ...], generated: Generated) -> GeneratedCaption:
        tokens = generated.tokens
        words = tokens[:-1] if tokens[-1:] == (self._text.sep_token_id,) else tokens
        continuation = self._tokenizer.decode(words)
        return GeneratedCaption(
            # Without a prompt they are the same: [DEC] is not text.
            text=self._tokenizer.decode((*prompt, *words)) if len(prompt) > 1 else continuation,
            continuation=continuation,
            token_ids=words,
            score=generated.log_probability / max(1, len(tokens)),
            beam_score=generated.beam_score,
        )

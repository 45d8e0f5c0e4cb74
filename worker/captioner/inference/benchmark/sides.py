"""The two sides of a comparison, and what of each is timed.

Ours is `FastCaptioner.generate` whole: from uint8 pixels of the model's size in host memory to
captions as text. Theirs is `BlipForConditionalGeneration.generate` on the batch, as its users
would call it: from normalised float32 pixels in host memory, through the move to device and type,
to token ids. Resizing is on neither side. Normalisation and decoding of tokens are on ours alone;
what is uneven in that is in transformers' favour.

Prompts are equal throughout, so that transformers' batches are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captioner.inference.benchmark.agreement import Trace, retrace
from captioner.inference.captions import Request
from captioner.inference.decoding import Decoding
from captioner.inference.fast import FastCaptioner
from captioner.inference.generate import place
from captioner.inference.reference import ReferenceCaptioner
from captioner.options import GenerationOptions

#: Token ids that were generated of each picture.
Captions = list[tuple[int, ...]]


class Ours(FastCaptioner):
    """The fast backend, with a view of its inside."""

    def caption(self, pixels: Sequence[NDArray[np.uint8]], options: GenerationOptions) -> Captions:
        """What is timed. `pixels` are `[side, side, 3]`; the best caption of each comes back."""
        return [captions[0].token_ids for captions in self.generate(pixels, options)]

    def encode(self, pixels: Sequence[NDArray[np.uint8]]) -> Tensor:
        """The image states `[B, N, W]` of uint8 pixels `[side, side, 3]`."""
        with torch.inference_mode():
            return self._encode(pixels)

    def follow(
        self, pixels: Sequence[NDArray[np.uint8]], options: GenerationOptions, trace: Trace
    ) -> Tensor:
        """Read what the float32 reference chose, by the code and the shapes of a free run.

        Args:
            pixels: of B pictures.
            options: those of the free run.
            trace: of the same B pictures.

        Returns:
            Our logits `[T, B, K, V]` in float32, in host memory, before each choice in `trace`.
        """
        prompt = self._tokenizer.prompt_ids(options)
        requests = [Request((image,), prompt, options, seed=0) for image in range(len(pixels))]
        steps: list[Tensor] = []
        with torch.inference_mode():
            states = self._encode(pixels)
            sep = self._text.sep_token_id
            decoding = place(self._runner, states, requests, sep)
            logits = self._runner.do(decoding, Decoding.begin)
            logits = logits.expand(-1, options.num_beams, -1)
            for tokens, parents in zip(trace.tokens, trace.parents, strict=True):
                steps.append(logits.to("cpu", torch.float32, copy=True))
                if len(steps) < len(trace.tokens):
                    decoding.captions.take(
                        tokens.to(self._device),
                        parents.to(self._device) if options.num_beams > 1 else None,
                    )
                    logits = self._runner.do(decoding, Decoding.read)
        return torch.stack(steps)


class Theirs(ReferenceCaptioner):
    """transformers, in batches."""

    def caption(self, pixels: Tensor, options: GenerationOptions) -> Captions:
        """What is timed.

        Args:
            pixels: normalised, float32 `[B, 3, side, side]`, in host memory.
            options: of which beams, number of tokens and prompt count.
        """
        prompt = self._tokenizer.prompt_ids(options)
        inputs: dict[str, Tensor] = {}
        if len(prompt) > 1:
            # As transformers' tokenizer would give it: `generate` takes the last id, [SEP], away.
            ids = torch.tensor([[*prompt, self._text.sep_token_id]], device=self._device)
            ids = ids.repeat(len(pixels), 1)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        model: Any = self.model  # transformers types `generate` for other classes than its own
        sequences = model.generate(
            pixel_values=pixels.to(self._device, self._dtype),
            **inputs,
            num_beams=options.num_beams,
            min_new_tokens=options.min_new_tokens,
            max_new_tokens=options.max_new_tokens,
            do_sample=False,
        )
        return [tuple(row) for row in sequences[:, len(prompt) :].tolist()]

    def trace(
        self, pictures: Sequence[NDArray[np.uint8]], options: Sequence[GenerationOptions]
    ) -> list[Trace]:
        """Caption pictures and keep how it came about, once per set of options.

        The states are encoded one picture at a time, and once for all options. Few pictures at
        once: transformers' copies of the image states are large in float32.

        Args:
            pictures: uint8 `[side, side, 3]`.
            options: sets that differ in beams.
        """
        with torch.inference_mode():
            states = torch.cat([self._encode(self.model, picture) for picture in pictures])
            return [self._trace(states, one) for one in options]

    def _trace(self, states: Tensor, options: GenerationOptions) -> Trace:
        prompt = self._tokenizer.prompt_ids(options)
        ids = torch.tensor([prompt], device=self._device).repeat(len(states), 1)
        decoder: Any = self.model.text_decoder
        output = decoder.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:-1], device=self._device).long(),
            generation_config=self._settings(options),
        )
        captions = [tuple(row) for row in output.sequences[:, len(prompt) :].tolist()]
        # Per step `[B × K, V]`, the beams of an image next to each other.
        logits = torch.stack([step.cpu().unflatten(0, (len(states), -1)) for step in output.logits])
        return retrace(logits.float(), captions, self._text.sep_token_id)

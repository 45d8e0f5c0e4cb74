"""The reference backend: transformers' own `generate`, one image at a time.

One at a time because transformers is wrong on prompts of unequal length in a batch: padded on the
right they continue from padding, padded on the left they start with [CLS] in place of [DEC].
"""

import contextlib
import math
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import BlipForConditionalGeneration, GenerationConfig
from transformers.utils import logging as transformers_logging

from captioner.domain import ModelInfo
from captioner.errors import ModelLoadError, describe
from captioner.inference.captioner import GeneratedCaption, check_groups, options_per_image
from captioner.inference.checkpoint import Checkpoint
from captioner.inference.devices import device_error, dtype_name
from captioner.inference.pixels import Picture, normalise, resize
from captioner.inference.tokenizer import load_tokenizer
from captioner.options import GenerationOptions


class ReferenceCaptioner:
    """`BlipForConditionalGeneration` behind the `Captioner` interface."""

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> None:
        """Load the model onto the device.

        Raises:
            ModelLoadError: it cannot be read, or does not fit the device's memory.
        """
        self._text = checkpoint.architecture.text
        self.pixels = checkpoint.pixels
        self._tokenizer = load_tokenizer(checkpoint.folder, self._text)
        self._device, self._dtype = device, dtype
        self._model: BlipForConditionalGeneration | None = _load_model(checkpoint, device, dtype)
        self._info = ModelInfo(
            id=checkpoint.model_id,
            revision=checkpoint.revision,
            dtype=dtype_name(dtype),
            device=str(device),
            backend="transformers",
            image_size=checkpoint.pixels.size,
        )

    @property
    def model(self) -> BlipForConditionalGeneration:
        """Transformers' own object."""
        if self._model is None:
            raise RuntimeError("this captioner is closed")
        return self._model

    def logits(self, image: Picture, ids: Sequence[int]) -> torch.Tensor:
        """Logits `[len(ids), V]` in float32 after each of `ids`, none of them chosen here."""
        states = self._encode(self.model, image)
        row = torch.tensor([list(ids)], device=self._device)
        output = self.model.text_decoder(
            input_ids=row, attention_mask=torch.ones_like(row), encoder_hidden_states=states
        )
        logits: torch.Tensor = output.logits[0].float()
        return logits

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
        model = self._model
        if model is None:
            raise RuntimeError("this captioner is closed")
        check_groups(groups)
        each = options_per_image(options, len(groups))
        for one in each:
            self.check(one)
        try:
            with torch.inference_mode():
                return [
                    self._caption(model, group, one)
                    for group, one in zip(groups, each, strict=True)
                ]
        except RuntimeError as error:
            meant = device_error(error, self._device)
            if meant is None:
                raise
            raise meant from None

    def close(self) -> None:
        """See `Captioner.close`."""
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _caption(
        self,
        model: BlipForConditionalGeneration,
        group: Sequence[Picture],
        options: GenerationOptions,
    ) -> list[GeneratedCaption]:
        # The states of several pictures follow each other, and the decoder sees them all.
        states = torch.cat([self._encode(model, picture) for picture in group], dim=1)
        prompt = self._tokenizer.prompt_ids(options)
        ids = torch.tensor([prompt], device=self._device)
        decoder: Any = model.text_decoder  # generate() is typed for other classes than its own
        with _seeded(options, self._device):
            # Not `model.generate`, which overwrites the first id and drops the last: the decoder's
            # own takes the ids as they are, and is what that one calls.
            output = decoder.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                encoder_hidden_states=states,
                encoder_attention_mask=torch.ones(
                    states.shape[:-1], dtype=torch.long, device=self._device
                ),
                generation_config=self._settings(options),
            )
        captions = [self._read(output, row, prompt) for row in range(options.num_return_sequences)]
        if options.do_sample:
            captions.sort(key=lambda caption: caption.score, reverse=True)
        return captions

    def _encode(self, model: BlipForConditionalGeneration, image: Picture) -> torch.Tensor:
        """The image states, `[1, patches + 1, width]`."""
        pixels = normalise(resize(image, self.pixels.size), self.pixels)
        batch = torch.from_numpy(pixels)[None].to(self._device, self._dtype)
        # cuDNN rounds float32 convolutions to TF32 unless told not to; matrix products are exact.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            states: torch.Tensor = model.vision_model(pixel_values=batch).last_hidden_state
        return states

    def _settings(self, options: GenerationOptions) -> GenerationConfig:
        settings: dict[str, Any] = {
            "num_beams": options.num_beams,
            "num_return_sequences": options.num_return_sequences,
            "max_new_tokens": options.max_new_tokens,
            "min_new_tokens": options.min_new_tokens or None,
            "repetition_penalty": options.repetition_penalty,
            "no_repeat_ngram_size": options.no_repeat_ngram_size,
            "do_sample": options.do_sample,
            "bos_token_id": self._text.bos_token_id,
            "eos_token_id": self._text.sep_token_id,
            "pad_token_id": self._text.pad_token_id,
            "return_dict_in_generate": True,
            "output_logits": True,
        }
        if options.num_beams > 1:
            # transformers returns the beams' scores only together with those of every step.
            settings |= {"length_penalty": options.length_penalty, "output_scores": True}
        if options.do_sample:
            # top_k 0 is off; left out, it would be 50.
            settings |= {
                "temperature": options.temperature,
                "top_k": options.top_k,
                "top_p": options.top_p,
            }
        return GenerationConfig(**settings)  # type: ignore[no-untyped-call]

    def _read(self, output: Any, row: int, prompt: tuple[int, ...]) -> GeneratedCaption:
        generated = output.sequences[row, len(prompt) :].tolist()
        sep = self._text.sep_token_id
        # What follows [SEP] is padding. Padding is not looked for: 0 may be generated, too.
        end = generated.index(sep) + 1 if sep in generated else len(generated)
        generated = generated[:end]
        words = tuple(generated[:-1] if generated[-1] == sep else generated)
        beams = getattr(output, "beam_indices", None)
        rows = [row] * end if beams is None else beams[row, :end].tolist()
        # Each step's logits as the model gave them, taken from the beam that the token continued.
        chosen = [
            step[source].log_softmax(-1)[token].item()
            for step, source, token in zip(output.logits, rows, generated, strict=False)
        ]
        scores = getattr(output, "sequences_scores", None)
        return GeneratedCaption(
            text=self._tokenizer.decode((*prompt, *words)),
            continuation=self._tokenizer.decode(words),
            token_ids=words,
            score=math.fsum(chosen) / end,
            beam_score=None if scores is None else scores[row].item(),
        )


@contextlib.contextmanager
def _seeded(options: GenerationOptions, device: torch.device) -> Iterator[None]:
    """Give one request random numbers of its own, and the process its own back afterwards."""
    if not options.do_sample:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(secrets.randbits(63) if options.seed is None else options.seed)
        yield


def _load_model(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> BlipForConditionalGeneration:
    try:
        with _quiet():
            model: Any = BlipForConditionalGeneration.from_pretrained(
                checkpoint.folder,
                dtype=dtype,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
            )
        placed: BlipForConditionalGeneration = model.to(device)
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"the model {checkpoint.model_id!r} does not fit {device}: {describe(error)}"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelLoadError(
            f"transformers cannot load the model in {checkpoint.folder}: {describe(error)}"
        ) from None
    return placed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and warnings off the terminal while a model loads.

    What they would report has been checked before.
    """
    logging: Any = transformers_logging  # untyped
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

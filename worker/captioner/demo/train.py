"""Train the demo model on freshly drawn scenes and save it in Hugging Face format.

    python -m captioner.demo.train --output DIR [--steps N] [--seed 0]

Takes about 18 minutes on two CPU cores. One background process draws while this one trains.
"""

import argparse
import copy
import itertools
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
)

from captioner.demo.accuracy import measure
from captioner.demo.lessons import IGNORED, IMAGE_SIZE, PATCH_SIZE, Array, Batch, lessons
from captioner.demo.shapes import KINDS, PALETTE
from captioner.demo.vocabulary import vocabulary
from captioner.inference import load_captioner

log = logging.getLogger(__name__)

WIDTH = 128
#: Standard deviation of the first weights: BLIP's 0.02 is for widths of 768 and more.
WEIGHT_SPREAD = 0.06
BATCH = 64
STEPS = 6500
PEAK_RATE = 1.5e-3
WARM_UP = 0.05
AVERAGING = 0.998
#: Weight of the patch reader's loss beside the captions'.
READING = 0.3
#: The most noise added to a training picture, as a standard deviation, of 255.
NOISE = 5.0


def build_processor() -> BlipProcessor:
    """The tokenizer and the image processor: BLIP's own, for these words and this size."""
    tokenizer = BertTokenizer(vocab=vocabulary(), do_lower_case=True, model_max_length=64)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return BlipProcessor(BlipImageProcessorPil(size=size), tokenizer)  # type: ignore[no-untyped-call]


def build_model() -> BlipForConditionalGeneration:
    """An untrained BLIP of fewer than 0.95 million parameters."""
    words = len(vocabulary())
    size = {
        "hidden_size": WIDTH,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "initializer_range": WEIGHT_SPREAD,
    }
    config = BlipConfig(
        initializer_range=WEIGHT_SPREAD,
        vision_config={
            **size,
            "num_hidden_layers": 3,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        },
        text_config={
            **size,
            "num_hidden_layers": 2,
            "encoder_hidden_size": WIDTH,
            "max_position_embeddings": 64,
            "vocab_size": words + 2,
            "bos_token_id": words,
            "sep_token_id": 3,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    )
    return BlipForConditionalGeneration(config)


class FreshBatches(IterableDataset[Batch[Array]]):
    """`lessons` without end, as torch's DataLoader wants them to run them in another process."""

    def __init__(self, seed: int) -> None:
        """Make the stream of one seed; every iteration over it starts anew."""
        self._seed = seed

    def __iter__(self) -> Iterator[Batch[Array]]:
        return lessons(self._seed, BATCH)


class PatchReader(torch.nn.Module):
    """Reads off each patch's features what the patch shows; dropped after training.

    Captions alone teach the encoder slowly: for thousands of steps it knows the colours and
    guesses the rest. Asked about every patch, it learns to see shapes at once.
    """

    def __init__(self) -> None:
        """Make an untrained reader."""
        super().__init__()
        self._read = torch.nn.Linear(WIDTH, 1 + len(KINDS) + len(PALETTE) + 1)

    def forward(self, features: Tensor, batch: Batch[Tensor]) -> Tensor:
        """The loss for features (batch, 1 + patches, width), the first of which is [CLS]."""
        read = self._read(features[:, 1:]).float()
        kinds, colours, centres = read.split([1 + len(KINDS), len(PALETTE), 1], dim=-1)
        return (
            cross_entropy(kinds.flatten(0, 1), batch.kinds.flatten())
            + cross_entropy(colours.flatten(0, 1), batch.colours.flatten())
            + binary_cross_entropy_with_logits(centres.squeeze(-1), batch.centres.float())
        )


def train(model: BlipForConditionalGeneration, steps: int, seed: int) -> None:
    """Train `model` in place; what it holds at the end is the running average of its weights."""
    reader, normalise = PatchReader(), _Normalise(build_processor())
    average = copy.deepcopy(model)
    weights = [*model.parameters(), *reader.parameters()]
    optimizers = _optimizers(model, reader)
    schedules = [LambdaLR(each, lambda step: _rate(step / steps)) for each in optimizers]
    batches: Iterator[Batch[Tensor]] = iter(
        DataLoader(FreshBatches(seed), batch_size=None, num_workers=1)
    )
    started = time.monotonic()
    model.train()
    for step, batch in enumerate(itertools.islice(batches, steps), 1):
        said, seen = _losses(model, reader, batch, normalise(batch.pixels))
        model.zero_grad()
        reader.zero_grad()
        torch.autograd.backward(said + READING * seen)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            for kept, current in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(current, 1 - AVERAGING)
        if step % 100 == 0 or step == steps:
            loss, seconds = said.item(), time.monotonic() - started
            log.info("step %d of %d, caption loss %.4f, %.0f s", step, steps, loss, seconds)
    model.load_state_dict(average.state_dict())


class _Normalise:
    """Pixels as the image processor makes them, but for a little noise."""

    def __init__(self, processor: BlipProcessor) -> None:
        self._mean = 255 * torch.tensor(processor.image_processor.image_mean).view(3, 1, 1)
        self._deviation = 255 * torch.tensor(processor.image_processor.image_std).view(3, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        # One pattern of noise a batch, in another strength on every picture: JPEG and video leave
        # no more than this, and a fresh pattern for each picture costs a tenth of the whole step.
        noise = torch.randn(pixels.shape[1:]) * (NOISE * torch.rand(len(pixels), 1, 1, 1))
        return (pixels + noise - self._mean) / self._deviation


def _losses(
    model: BlipForConditionalGeneration, reader: PatchReader, batch: Batch[Tensor], pixels: Tensor
) -> tuple[Tensor, Tensor]:
    """The losses of the captions, per token, and of the patches."""
    with torch.autocast("cpu", torch.bfloat16):
        features = model.vision_model(pixels).last_hidden_state
        logits = model.text_decoder(
            input_ids=batch.ids,
            attention_mask=(batch.ids != 0).long(),
            encoder_hidden_states=features,
        ).logits
        seen = reader(features, batch)
    said, labels = logits[:, :-1].float().flatten(0, 1), batch.labels[:, 1:].flatten()
    return cross_entropy(said, labels, ignore_index=IGNORED), seen


def _optimizers(
    model: BlipForConditionalGeneration, reader: PatchReader
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, which learn in a third of the steps with it; AdamW for the rest."""
    matrices: list[torch.nn.Parameter] = []
    others = list(reader.parameters())
    for name, weight in model.named_parameters():
        inner = weight.ndim == 2 and "embeddings" not in name
        (matrices if inner else others).append(weight)
    rate, decay = PEAK_RATE, 0.02
    return [
        torch.optim.Muon(matrices, rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, rate, betas=(0.9, 0.98), weight_decay=decay),
    ]


def _rate(progress: float) -> float:
    """The learning rate as a share of its peak: a linear rise, then half a cosine down to 0."""
    if progress < WARM_UP:
        return max(progress / WARM_UP, 0.01)
    return (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2


def save(model: BlipForConditionalGeneration, processor: BlipProcessor, folder: Path) -> None:
    """Write the checkpoint with every file that the hub's BLIP has, by its names.

    transformers 5 writes processor_config.json alone, and no vocab.txt; readers of the hub's
    files look for preprocessor_config.json and the word list too.
    """
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m captioner.demo.train", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"batches (default {STEPS})")
    parser.add_argument("--seed", type=int, default=0, help="of weights and scenes (default 0)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # the other core draws; two threads here would wait for it
    torch.manual_seed(options.seed)
    model, processor = build_model(), build_processor()
    log.info("%d parameters", sum(p.numel() for p in model.parameters()))
    train(model, options.steps, options.seed)
    save(model, processor, options.output)
    captioner = load_captioner(str(options.output), device="cpu", dtype="float32")
    for prompt in (None, "a picture of", "a photography of"):
        found = measure(captioner, prompt=prompt)
        log.info(
            "prompt %r: %d of %d unseen scenes captioned exactly right",
            prompt or "",
            found.right,
            found.count,
        )


if __name__ == "__main__":
    main()

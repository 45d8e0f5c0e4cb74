"""Measure how many drawn scenes a captioner captions exactly right.

    python -m captioner.demo.accuracy [--scenes 1000] [--prompt "a picture of"] [--json]

Every scene has exactly one true caption, so right means equal, word for word.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from PIL import Image

from captioner.demo import MODEL_PATH
from captioner.demo.scenes import draw, scenes
from captioner.errors import CaptionerError
from captioner.options import GenerationOptions

#: Seed of the scenes measured by default; training draws from another stream.
UNSEEN_SEED = 1_000_003


class _Text(Protocol):
    @property
    def text(self) -> str: ...


class SceneCaptioner(Protocol):
    """What is measured: `captioner.inference.Captioner`, or anything else that captions."""

    def generate(
        self, images: Sequence[Image.Image], options: GenerationOptions, /
    ) -> Sequence[Sequence[_Text]]:
        """Caption pictures; per picture the captions, best first."""
        ...


@dataclass(frozen=True, slots=True)
class Mistake:
    """A scene captioned wrongly."""

    #: Its place in the run, from 0.
    index: int
    #: The prompt, if there was one, and the true caption.
    expected: str
    #: What the captioner said.
    text: str


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The outcome of a measurement."""

    #: How many scenes were captioned.
    count: int
    #: How many of them exactly right.
    right: int
    #: The others, in order.
    wrong: tuple[Mistake, ...]

    @property
    def share(self) -> float:
        """The share that is right, 0 to 1; 0 when nothing was captioned."""
        return self.right / self.count if self.count else 0.0


def measure(
    captioner: SceneCaptioner,
    *,
    count: int = 1000,
    seed: int = UNSEEN_SEED,
    prompt: str | None = None,
    num_beams: int = 1,
    batch_size: int = 32,
) -> Accuracy:
    """Caption drawn scenes and compare each text with the true caption.

    Args:
        captioner: what to measure.
        count: how many scenes to draw, 384 pixels square each.
        seed: which scenes; the same seed gives the same ones.
        prompt: what every caption is to start with; the text must then be prompt and caption.
        num_beams: 1 is greedy decoding.
        batch_size: how many pictures to hand over at once.
    """
    options = GenerationOptions(prompt=prompt, num_beams=num_beams)
    pending = enumerate(scenes(seed, count))
    wrong: list[Mistake] = []
    while batch := list(itertools.islice(pending, batch_size)):
        results = captioner.generate([draw(scene) for _, scene in batch], options)
        for (index, scene), captions in zip(batch, results, strict=True):
            expected = f"{prompt or ''} {scene.caption}".strip()
            if captions[0].text != expected:
                wrong.append(Mistake(index, expected, captions[0].text))
    return Accuracy(count, count - len(wrong), tuple(wrong))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m captioner.demo.accuracy",
        description="Measure how many drawn scenes a model captions exactly right.",
    )
    parser.add_argument("--model", default=str(MODEL_PATH), help="folder or hub id (the demo's)")
    parser.add_argument("--scenes", type=int, default=1000, help="how many to draw (1000)")
    parser.add_argument("--seed", type=int, default=UNSEEN_SEED, help=f"which ones ({UNSEEN_SEED})")
    parser.add_argument("--prompt", help="what every caption starts with (nothing)")
    parser.add_argument("--beams", type=int, default=1, help="1 is greedy decoding (1)")
    parser.add_argument("--backend", help="of captioner.inference (its default)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 or auto (auto)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args(arguments)
    # Here, not above: with torch it costs seconds, and `measure` does not need it.
    from captioner.inference import load_captioner

    backend = {"backend": asked.backend} if asked.backend else {}
    try:
        found = measure(
            load_captioner(asked.model, dtype=asked.dtype, **backend),
            count=asked.scenes,
            seed=asked.seed,
            prompt=asked.prompt,
            num_beams=asked.beams,
        )
    except CaptionerError as error:
        parser.exit(1, f"{error}\n")
    if asked.json:
        sys.stdout.write(json.dumps({**asdict(found), "share": found.share}) + "\n")
        return
    for mistake in found.wrong:
        sys.stdout.write(f"{mistake.index}: {mistake.text!r}, should be {mistake.expected!r}\n")
    sys.stdout.write(f"{found.right} of {found.count} exactly right ({found.share:.1%})\n")


if __name__ == "__main__":
    main()

"""`evaluate`: caption a COCO caption set and score the captions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from captioner.cli.environment import Device, Dtype, Json, Model, settings_from
from captioner.cli.local_paths import writable
from captioner.cli.output import console, plain, print_json, progress_bar, remarks
from captioner.cli.requests import Option, Prompt, parse_options
from captioner.domain import ModelInfo
from captioner.errors import CaptionerError
from captioner.logs import configure_logging
from captioner.options import PAPER, GenerationOptions
from captioner.redaction import printable
from captioner.settings import Settings

if TYPE_CHECKING:
    from captioner.evaluate import CaptionSet, Picture, Predictions, Report


class Setting(StrEnum):
    """Sets of options with a name."""

    PAPER = "paper"


def evaluate(
    annotations: Annotated[
        Path,
        typer.Option(
            "--annotations",
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="Caption set in COCO's format: images with file_name, annotations with caption.",
        ),
    ],
    images: Annotated[
        Path,
        typer.Option(
            "--images", exists=True, file_okay=False, metavar="DIR", help="Where its pictures are."
        ),
    ],
    setting: Annotated[
        Setting | None,
        typer.Option(
            "--setting", help="Options of the BLIP paper, where --prompt and -o say nothing else."
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            dir_okay=False,
            callback=writable,
            metavar="FILE",
            help="JSON lines; what is in there is not captioned again. "
            "Default: NAME.predictions.jsonl right here, NAME being the caption set's.",
            show_default=False,
        ),
    ] = None,
    prompt: Prompt = None,
    option: Option = None,
    *,
    as_json: Json = False,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Caption a COCO caption set and score the captions.

    Scores are BLEU-1 to 4, METEOR, ROUGE-L and CIDEr. Only the generated text is scored, not the
    prompt. Interrupted, it goes on where it was.

    Exit 1 if a picture is missing or could not be captioned: there are no scores then.
    """
    # Here, because the other commands run where the extra `worker` is not installed.
    from captioner.evaluate import Report, missing, read_captions, require_metrics, score

    settings = settings_from(model__id=model, model__device=device, model__dtype=dtype)
    configure_logging(settings.log.model_copy(update={"level": "ERROR"}))
    options = parse_options(
        prompt, [*_texts(setting, prompt), *(option or ())], settings.generation
    )
    require_metrics()
    captions = read_captions(annotations)
    _say_what_is_left_out(captions)
    if absent := missing(captions.pictures, images):
        raise CaptionerError(
            f"{len(absent)} of {len(captions.pictures)} pictures are not in {images}; "
            f"the first is {printable(absent[0].file)}"
        )
    path = predictions or Path(f"{annotations.stem}.predictions.jsonl")
    info, made = _caption(settings, captions.pictures, images, options, path)
    with remarks.status("scoring"):
        scores = score(
            {picture.id: picture.captions for picture in captions.pictures},
            {picture.id: made[picture.id].continuation for picture in captions.pictures},
        )
    report = Report(captions=captions, scores=scores, model=info, options=options, predictions=path)
    if as_json:
        print_json(report.as_mapping())
    else:
        _print(report)


def _texts(setting: Setting | None, prompt: str | None) -> list[str]:
    """A named setting as `-o` would say it, so that what the user says comes after it."""
    if setting is None:
        return []
    values = PAPER.as_mapping()
    if prompt is not None:  # instead of the setting's
        del values["prompt"]
    return [f"{name}={json.dumps(value)}" for name, value in values.items()]


def _say_what_is_left_out(captions: CaptionSet) -> None:
    if captions.images_without_captions:
        remarks.print(
            f"{captions.images_without_captions} images have no captions and are left out",
            style="yellow",
        )
    if captions.captions_without_image:
        remarks.print(
            f"{captions.captions_without_image} captions are of no listed image and are left out",
            style="yellow",
        )


def _caption(
    settings: Settings,
    pictures: Sequence[Picture],
    folder: Path,
    options: GenerationOptions,
    path: Path,
) -> tuple[ModelInfo, Predictions]:
    """Caption what is not captioned yet; the model, and what it said of every picture."""
    from captioner.engine import InlineEngine
    from captioner.evaluate import Predictions, caption_missing
    from captioner.loading import load_model
    from captioner.pipeline import Pipeline
    from captioner.sampling import InlineSampler, open_plugins

    # What the user names on this machine may be read, wherever its links lead.
    roots = tuple({(folder / picture.file).resolve().parent for picture in pictures})
    limits = settings.media.model_copy(update={"allowed_roots": roots})
    with remarks.status("loading the model"):
        engine = InlineEngine(lambda: load_model(settings), settings.engine.max_batch)
        engine.start()
    try:
        sampler = InlineSampler(open_plugins(settings.plugins, limits), limits)
        with Predictions(path, engine.info, options) as made, progress_bar() as progress:
            done = sum(made.has(picture) for picture in pictures)
            task = progress.add_task("captioning", total=len(pictures), completed=done)
            failed = caption_missing(
                Pipeline(engine, sampler, limits),
                pictures,
                folder,
                options,
                made,
                max_batch=settings.engine.max_batch,
                advance=lambda: progress.advance(task),
            )
    except KeyboardInterrupt:
        remarks.print(
            f"interrupted; the captions so far are in {path}, and the same command goes on there",
            soft_wrap=True,
            markup=False,
        )
        raise
    finally:
        engine.close()
    if failed:
        picture, error = failed[0]
        raise CaptionerError(
            f"{len(failed)} of {len(pictures)} pictures could not be captioned, so there are no "
            f"scores; the first is {printable(picture.file)}: {error.code}: {error}"
        )
    return engine.info, made


def _print(report: Report) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column("score", justify="right")
    table.add_column("as papers print it", justify="right")
    for name, value in report.scores.items():
        table.add_row(name, f"{value:.4f}", f"{100 * value:.1f}")
    console.print(table)
    model = report.model
    chosen = "".join(f", {name} {json.dumps(value)}" for name, value in report.chosen.items())
    for line in (
        f"{len(report.captions.pictures)} pictures, {report.references} captions of people",
        f"model {model.id} ({model.backend}, {model.dtype}, {model.device}){chosen}",
        f"predictions: {report.predictions}",
        *(f"{name} is left out: {why}" for name, why in report.as_mapping()["left_out"].items()),
    ):
        console.print(plain(line), soft_wrap=True, highlight=False)

"""`bench model`: how fast, beside what, and whether it says the same."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import platformdirs
import typer
from rich.markup import escape
from rich.table import Table

from captioner.cli.bench.progress import JsonFile, mib, telling, written
from captioner.cli.environment import Device, Dtype, Model, settings_from
from captioner.cli.output import console, progress_bar, remarks
from captioner.errors import ModelLoadError
from captioner.logs import configure_logging
from captioner.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

    from captioner.inference.benchmark import Plan

SCENE_SEED = 17
#: Of all sizes and beams; fewer say nothing of growth.
LEAST_TURNS = 10


RandomWeights = Annotated[
    bool,
    typer.Option(
        "--random-weights",
        help="BLIP-large with random weights, 1.8 GB, made in the folder --model names, or in "
        "the user's cache, where it is not there yet.",
    ),
]


class Against(StrEnum):
    """What there is to compare with."""

    TRANSFORMERS = "transformers"


def _numbers(text: str) -> str:
    """Check a list such as 1,8,32."""
    for part in text.split(","):
        if not (part.strip().isdecimal() and 1 <= int(part) <= 4096):
            raise typer.BadParameter(
                f"{text!r} must be whole numbers from 1 to 4096 with commas between, such as 1,8,32"
            )
    return text


def _parsed(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(int, text.split(","))))


def model(
    context: typer.Context,
    model_id: Model = None,
    batch: Annotated[
        str, typer.Option("--batch", callback=_numbers, metavar="N,…", help="Batch sizes.")
    ] = "1,8,32",
    beams: Annotated[
        str, typer.Option("--beams", callback=_numbers, metavar="N,…", help="1 is greedy.")
    ] = "1,3",
    against: Annotated[
        Against, typer.Option("--against", help="What to compare with.")
    ] = Against.TRANSFORMERS,
    json_file: JsonFile = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=1, max=256, help="New tokens, no fewer and no more.")
    ] = 16,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Timed runs; the median counts.")
    ] = 3,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What every caption starts with.")
    ] = None,
    encoder_batch: Annotated[
        int, typer.Option("--encoder-batch", min=1, help="Batch of the encoder's own row.")
    ] = 8,
    device: Device = None,
    dtype: Dtype = None,
    *,
    also_default: Annotated[
        bool,
        typer.Option("--also-default", help="Also transformers as it loads by default: float32."),
    ] = False,
    random_weights: RandomWeights = False,
    batches: Annotated[
        int | None,
        typer.Option(
            "--batches",
            min=LEAST_TURNS,
            help="Compare nothing: caption this many batches and tell whether memory grows.",
        ),
    ] = None,
) -> None:
    """Measure our BLIP beside transformers': speed and captions.

    Same pictures, same number of tokens, both in one run in alternation, warm-up left out. Timed
    is what lies between pixels of the model's size and tokens.
    """
    turn = len(_parsed(batch)) * len(_parsed(beams))
    if batches is not None and batches < LEAST_TURNS * turn:
        raise typer.BadParameter(
            f"{batches} are too few to see memory grow: with {turn} kinds of batches (--batch, "
            f"--beams) at least {LEAST_TURNS * turn}",
            param_hint="'--batches'",
        )
    model_id = model_of(context, model_id, random_weights=random_weights)
    settings = settings_from(model__id=model_id, model__device=device, model__dtype=dtype)
    configure_logging(settings.log.model_copy(update={"level": "ERROR"}))
    # Here, because the other commands run where the extra `worker` is not installed.
    from captioner.inference.benchmark import Plan

    plan = Plan(
        batches=_parsed(batch),
        beams=_parsed(beams),
        tokens=tokens,
        rounds=rounds,
        prompt=prompt,
        also_default=also_default,
        encoder_batch=encoder_batch,
    )
    report = _report(settings, plan, against, batches)
    with written(report, json_file):
        _print(report)


def model_of(context: typer.Context, model_id: str | None, *, random_weights: bool) -> str | None:
    """The model that `--model` and `--random-weights` ask for together."""
    if not random_weights:
        return model_id
    # A model that the environment names is for other commands, and no folder to write to.
    source = context.get_parameter_source("model_id")
    given = model_id if source is not None and source.name == "COMMANDLINE" else None
    return str(_random_weights(given))


def _random_weights(given: str | None) -> Path:
    """Where the checkpoint is, made if it was not there."""
    folder = platformdirs.user_cache_path("captioner") / "blip-large-random"
    if given:
        folder = Path(given).expanduser()
        if not folder.absolute().parent.is_dir():
            raise typer.BadParameter(
                f"--random-weights: there is no folder {folder.absolute().parent} to make "
                f"{folder.name} in"
            )
    from captioner.inference.benchmark import make_blip_large

    with progress_bar() as progress:
        task = progress.add_task("random weights", total=None)
        made = make_blip_large(
            folder, lambda done, total: progress.update(task, completed=done, total=total)
        )
    if made:
        remarks.print(
            f"random weights are in {escape(str(folder))}; remove the folder when you are done",
            soft_wrap=True,
        )
    return folder


def _report(
    settings: Settings, plan: Plan, against: Against, batches: int | None
) -> dict[str, Any]:
    from captioner.inference.benchmark import compare, describe_hardware, describe_versions
    from captioner.inference.checkpoint import open_checkpoint
    from captioner.inference.devices import resolve_device, resolve_dtype

    device = resolve_device(settings.model.device)
    dtype = resolve_dtype(settings.model.dtype, device)
    with remarks.status("checking the model"):
        try:
            checkpoint = open_checkpoint(settings.model.id, settings.model.revision)
        except ModelLoadError as error:
            raise ModelLoadError(f"{error}; --random-weights are as fast") from None
    report = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": describe_hardware(device),
        "versions": describe_versions(),
        "model": {"id": checkpoint.model_id, "revision": checkpoint.revision},
        "against": against.value,
        "tokens": plan.tokens,
        "rounds": plan.rounds,
        "prompt": plan.prompt,
        "rows": [],
        "encoder": None,
        "memory": None,
    }
    pictures = _pictures(plan.pictures)
    if batches is not None:
        report["memory"] = _memory(settings, pictures, plan, batches)
    else:
        with telling(plan.steps) as say:
            report |= compare(checkpoint, device, dtype, pictures, plan, say)
    # Again: how many threads there are is known when our model is loaded.
    return report | {"hardware": describe_hardware(device)}


def _memory(settings: Settings, pictures: list[Image], plan: Plan, batches: int) -> dict[str, Any]:
    from captioner.inference import load_captioner
    from captioner.inference.benchmark import measure_memory

    chosen = settings.model
    captioner = load_captioner(
        chosen.id,
        revision=chosen.revision,
        device=chosen.device,
        dtype=chosen.dtype,
        backend=chosen.backend,
    )
    try:
        with telling(batches) as say:
            return measure_memory(captioner, pictures, plan, batches, say)
    finally:
        captioner.close()


def _pictures(count: int) -> list[Image]:
    """Drawn scenes, the same ones every time."""
    from captioner.demo.scenes import draw, scenes

    return [draw(scene) for scene in scenes(SCENE_SEED, count)]


def _print(report: dict[str, Any]) -> None:
    hardware, versions = report["hardware"], report["versions"]
    console.print(
        f"{escape(hardware['gpu'] or hardware['cpu'])}, {hardware['threads']} threads; "
        f"torch {versions['torch']}, transformers {versions['transformers']}; "
        f"model {escape(report['model']['id'])}",
        soft_wrap=True,
    )
    if report["rows"]:
        _print_rows(report)
    if encoder := report["encoder"]:
        console.print(
            f"encoder, batch {encoder['batch']}: {encoder['seconds']:.3f} s; its linear layers and "
            f"attention alone {encoder['floor_seconds']:.3f} s: {encoder['share']:.0%} of this "
            f"floor reached (attention {encoder['attention_seconds']:.3f} s); with bare products, "
            f"at {encoder['product_tflops_per_second']:.3g} TFLOP/s, "
            f"{encoder['bare_floor_seconds']:.3f} s: {encoder['bare_share']:.0%}",
            soft_wrap=True,
        )
    if memory := report["memory"]:
        console.print(
            f"{memory['batches']} batches: memory {mib(memory['resident_bytes_early'])} early, "
            f"{mib(memory['resident_bytes_late'])} late, growth "
            f"{mib(memory['resident_bytes_growth'])}",
            soft_wrap=True,
        )


def _print_rows(report: dict[str, Any]) -> None:
    rows = report["rows"]
    optional: dict[str, tuple[str, Callable[[Any], str]]] = {
        "default, s": ("default_seconds", "{:.3f}".format),
        "default, times": ("default_ratio", "{:.2f}".format),
        "memory": ("peak_memory_bytes", mib),
        "its memory": ("reference_peak_memory_bytes", mib),
    }
    shown = {title: how for title, how in optional.items() if rows[0][how[0]] is not None}
    table = Table(box=None, pad_edge=False)
    titles = ["batch", "beams", "type", "seconds", report["against"], "times", "images/s", "top-1"]
    for title in [*titles, "differ", "unexplained", *shown]:
        table.add_column(title, justify="left" if title == "type" else "right", no_wrap=True)
    for row in rows:
        unexplained = row["unexplained_flips"]
        table.add_row(
            str(row["batch"]),
            str(row["beams"]),
            row["dtype"],
            f"{row['seconds']:.3f}",
            f"{row['reference_seconds']:.3f}",
            f"[bold]{row['ratio']:.2f}[/]",
            f"{row['images_per_second']:.2f}",
            f"{row['teacher_forced_top1_agreement']:.2%}",
            f"{row['flips']} ({row['reference_flips']})",
            f"[red]{unexplained}[/]" if unexplained else "0",
            *(write(row[key]) for key, write in shown.values()),
        )
    console.print(table)
    console.print(
        "seconds per batch, medians; times: how much faster; top-1: likeliest token as in float32, "
        "along float32's captions; differ: captions other than float32's, ours "
        f"({report['against']}' own); unexplained: those that rounding does not explain",
        style="dim",
    )

"""`caption`: local files and folders, in this process, without broker or database."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from captioner.cli.environment import Device, Dtype, Json, Model, settings_from
from captioner.cli.items import SUFFIXES
from captioner.cli.output import console, print_json, progress_bar, remarks
from captioner.cli.requests import Option, Prompt, parse_options
from captioner.domain import Caption, CaptionRequest, Source
from captioner.errors import JobError
from captioner.logs import configure_logging
from captioner.options import GenerationOptions
from captioner.settings import Settings


def caption(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Pictures, or folders of them.", show_default=False),
    ],
    prompt: Prompt = None,
    option: Option = None,
    *,
    sidecar: Annotated[
        bool, typer.Option("--sidecar", help="Write each caption beside its picture, as .txt.")
    ] = False,
    as_json: Json = False,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Caption pictures right here; exit 1 if one could not be."""
    settings = settings_from(model__id=model, model__device=device, model__dtype=dtype)
    configure_logging(settings.log.model_copy(update={"level": "ERROR"}))
    options = parse_options(prompt, option, settings.generation)
    files = [file for path in paths for file in _pictures(path)]
    failed = 0
    results: list[dict[str, Any]] = []
    for file, captions, error in _run(settings, files, options):
        failed += error is not None
        if as_json:
            results.append(_entry(file, captions, error))
        elif error:
            remarks.print(
                f"{escape(str(file))}: [red]{error.code}[/]: {escape(str(error))}", soft_wrap=True
            )
        else:
            console.print(f"{escape(str(file))}: {escape(captions[0].text)}", soft_wrap=True)
        if sidecar and not error:
            file.with_suffix(".txt").write_text(captions[0].text + "\n", encoding="utf-8")
    if as_json:
        print_json(results)
    if failed:
        remarks.print(f"{failed} of {len(files)} failed", style="red")
        raise typer.Exit(1)


def _pictures(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not found:
            raise typer.BadParameter(f"{path} holds no pictures")
        return found
    if not path.exists():
        raise typer.BadParameter(f"{path}: no such file")
    return [path]


def _run(
    settings: Settings, files: Sequence[Path], options: GenerationOptions
) -> Iterator[tuple[Path, Sequence[Caption], JobError | None]]:
    """Caption the files in shared batches and yield them in their order."""
    # Here, because the other commands run where the extra `worker` is not installed.
    from captioner.engine import InlineEngine
    from captioner.loading import load_model
    from captioner.pipeline import Pipeline
    from captioner.sampling import InlineSampler, open_plugins

    # What the user names on this machine may be read, wherever it is.
    folders = tuple({file.resolve().parent for file in files})
    limits = settings.media.model_copy(update={"allowed_roots": folders})
    with remarks.status("loading the model"):
        engine = InlineEngine(lambda: load_model(settings), settings.engine.max_batch)
        engine.start()
    try:
        plugins = open_plugins(settings.plugins, limits)
        pipeline = Pipeline(engine, InlineSampler(plugins), limits)

        def run(file: Path) -> tuple[Path, Sequence[Caption], JobError | None]:
            request = CaptionRequest(source=Source(str(file.absolute())), options=options)
            try:
                return file, pipeline.caption(request).captions, None
            except JobError as error:
                return file, (), error

        workers = settings.engine.max_batch + (os.cpu_count() or 1)
        with progress_bar() as progress, ThreadPoolExecutor(workers) as executor:
            task = progress.add_task("captioning", total=len(files))
            for result in executor.map(run, files):
                progress.advance(task)
                yield result
    finally:
        engine.close()


def _entry(file: Path, captions: Sequence[Caption], error: JobError | None) -> dict[str, Any]:
    if error:
        return {"file": str(file), "error": {"code": error.code.value, "message": str(error)}}
    best = captions[0]
    return {
        "file": str(file),
        "caption": best.text,
        "continuation": best.continuation,
        "score": best.score,
        "captions": [one.text for one in captions],
    }

"""`caption`: local files and folders, in this process, without broker or database."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer

from captioner.cli.environment import Device, Dtype, Json, Model, settings_from
from captioner.cli.folders import pictures_below
from captioner.cli.local_paths import Kind, from_root, kind_of, one_line, shown
from captioner.cli.output import (
    alt_text,
    console,
    plain,
    print_json,
    print_timeline,
    progress_bar,
    remarks,
)
from captioner.cli.requests import (
    At,
    Decorative,
    Every,
    Fps,
    Frames,
    Keyframes,
    MaxAltText,
    Option,
    Prompt,
    VideoMode,
    parse_alt_text,
    parse_options,
    parse_video,
)
from captioner.cli.sidecars import Sidecars
from captioner.cores import available_cores
from captioner.domain import Caption, CaptionRequest
from captioner.errors import CaptionerError, InvalidRequestError, JobError
from captioner.logs import configure_logging
from captioner.settings import MediaSettings, Settings
from captioner.source import Source
from captioner.timeline import joint_caption, segments
from captioner.words import keywords

#: A file, and why it is not captioned, if that is known already.
_Named = tuple[Path, JobError | None]


def caption(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH",
            help="Pictures, folders of them, or videos.",
            show_default=False,
            readable=False,  # typer would refuse all for one that is not
        ),
    ],
    prompt: Prompt = None,
    option: Option = None,
    *,
    decorative: Decorative = False,
    max_alt_text: MaxAltText = None,
    frames: Frames = None,
    every: Every = None,
    fps: Fps = None,
    keyframes: Keyframes = False,
    at: At = None,
    video_mode: VideoMode = None,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(
            "--contact-sheet",
            metavar="PATH",
            help="Draw a video's frames with their captions, as JPEG.",
        ),
    ] = None,
    sidecar: Annotated[
        bool,
        typer.Option(
            "--sidecar",
            help="Write each caption beside its picture, as .txt; of videos, .vtt too. Of a.png to "
            "a.txt, or to a.png.txt if there is an a.jpg as well.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace .txt and .vtt files that are there.")
    ] = False,
    as_json: Json = False,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Caption pictures and videos right here.

    Needs neither queue nor database. Exit 1 if one could not be captioned.
    """
    settings = settings_from(model__id=model, model__device=device, model__dtype=dtype)
    configure_logging(settings.log.model_copy(update={"level": "ERROR"}))
    template = CaptionRequest(
        source=Source(os.devnull),
        options=parse_options(prompt, option, settings.generation),
        alt_text=parse_alt_text(decorative=decorative, max_characters=max_alt_text),
        video=parse_video(
            frames=frames, every=every, fps=fps, keyframes=keyframes, at=at, mode=video_mode
        ),
    )
    files = [named for path in paths for named in _pictures(path)]
    if contact_sheet and len(files) != 1:
        raise InvalidRequestError("--contact-sheet is of one video; name one")
    if overwrite and not sidecar:
        raise InvalidRequestError("--overwrite is of --sidecar: add that")
    sidecars = Sidecars([file for file, _ in files], overwrite=overwrite) if sidecar else None
    failed = 0
    results: list[dict[str, Any]] = []
    for file, captions, error in _run(settings, files, template):
        failed += error is not None
        if as_json:
            results.append(_entry(file, captions, error))
        else:
            _print(file, captions, error)
        if sidecars and not error:
            try:
                sidecars.write(file, captions)
            except CaptionerError as problem:
                failed += 1
                remarks.print(plain(str(problem)), soft_wrap=True)
        if contact_sheet and not error:
            contact_sheet.write_bytes(_sheet(settings, file, template, captions))
            remarks.print(f"contact sheet: {plain(str(contact_sheet))}", soft_wrap=True)
    if as_json:
        print_json(results)
    if failed:
        remarks.print(f"{failed} of {len(files)} failed", style="red")
        raise typer.Exit(1)


def _print(file: Path, captions: Sequence[Caption], error: JobError | None) -> None:
    if error:
        problem = f"[red]{error.code}[/]: {plain(str(error))}"
        remarks.print(f"{plain(one_line(file))}: {problem}", soft_wrap=True)
        return
    console.print(f"{plain(one_line(file))}: {plain(captions[0].text)}", soft_wrap=True)
    made = captions[0].alt_text
    if made is not None:
        console.print(f"  {alt_text(made)}", soft_wrap=True)
    if segments(captions):
        print_timeline(captions)


def _sheet(
    settings: Settings, file: Path, template: CaptionRequest, captions: Sequence[Caption]
) -> bytes:
    from captioner.sampling import InlineSampler, open_plugins
    from captioner.sheets import sheet_of

    limits = _limits(settings, [file])
    plugins = open_plugins(settings.plugins, limits)
    request = replace(template, source=Source(str(from_root(file))))
    return sheet_of(request, captions, InlineSampler(plugins, limits), plugins, limits)


def _limits(settings: Settings, files: Sequence[Path]) -> MediaSettings:
    """What the user names on this machine may be read, wherever it is."""
    folders = tuple({Path(os.path.realpath(file)).parent for file in files})
    return settings.media.model_copy(update={"allowed_roots": folders})


def _pictures(path: Path) -> Iterable[_Named]:
    kind = kind_of(path)
    if kind is Kind.NOTHING:
        raise InvalidRequestError(f"{shown(path)}: no such file")
    return [(path, None)] if kind is Kind.FILE else pictures_below(path)


def _run(
    settings: Settings, files: Sequence[_Named], template: CaptionRequest
) -> Iterator[tuple[Path, Sequence[Caption], JobError | None]]:
    """Caption the files as `template` says, in shared batches, and yield them in their order."""
    # Here, because the other commands run where the extra `worker` is not installed.
    from captioner.engine import InlineEngine
    from captioner.loading import load_model
    from captioner.pipeline import Pipeline
    from captioner.sampling import InlineSampler, open_plugins

    limits = _limits(settings, [file for file, _ in files])
    with remarks.status("loading the model"):
        engine = InlineEngine(lambda: load_model(settings), settings.engine.max_batch)
        engine.start()
    try:
        plugins = open_plugins(settings.plugins, limits)
        pipeline = Pipeline(engine, InlineSampler(plugins, limits), limits, plugins=plugins)

        def run(named: _Named) -> tuple[Path, Sequence[Caption], JobError | None]:
            file, problem = named
            try:
                if problem:
                    raise problem
                # Not every name can be a source's: of bytes that are no UTF-8, or with a line end.
                request = replace(template, id=uuid4(), source=Source(str(from_root(file))))
                return file, pipeline.caption(request).captions, None
            except JobError as error:
                return file, (), error

        workers = settings.engine.max_batch + available_cores()
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
        "alt_text": best.alt_text,
        "score": best.score,
        "captions": [one.text for one in captions],
        **_timeline(captions),
    }


def _timeline(captions: Sequence[Caption]) -> dict[str, Any]:
    """What there is to say of a video beside its caption; nothing of a picture."""
    parts, joint = segments(captions), joint_caption(captions)
    if not parts:
        return {}
    return {
        **({"joint": {"caption": joint.text, "score": joint.score}} if joint else {}),
        "keywords": keywords(parts),
        "segments": [
            {
                "start_seconds": part.start_seconds,
                "end_seconds": part.end_seconds,
                "frame_seconds": part.frame_seconds,
                "caption": part.text,
                "alt_text": part.alt_text,
                "score": part.score,
            }
            for part in parts
        ],
    }

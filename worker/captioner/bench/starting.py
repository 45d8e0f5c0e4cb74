"""Starting the two workers, each in its corner, and ending them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from captioner.bench import noop, null_model
from captioner.bench.backlog import with_prefix
from captioner.bench.plan import Plan
from captioner.bench.processes import running
from captioner.bench.workers import CaptionWorker, NoopWorker, Worker
from captioner.plugins import ENTRY_POINT_GROUP
from captioner.settings import Settings
from captioner.store import create_store_engine

#: What the null model is called as a plugin.
PLUGIN = "captioner_bench"
#: Height and width of the null model's pictures in pixels: BLIP's, or next to nothing.
DECODED_SIZE = 384
UNDECODED_SIZE = 8
JPEG_SIZE = (640, 480)


@contextlib.contextmanager
def running_noop(settings: Settings, folder: Path) -> Iterator[Worker]:
    """Stock Celery with as many threads, in a corner of the same Redis."""
    settings = with_prefix(settings, f"{settings.broker.key_prefix}noop:")
    hostname = f"noop{os.getpid()}@bench"
    arguments = ["-m", noop.__name__, hostname, str(settings.concurrency)]
    with running(arguments, worker_environment(settings), folder / "noop.log") as process:
        worker = NoopWorker(process, settings, hostname)
        worker.wait_until_ready()
        yield worker


@contextlib.contextmanager
def running_captioner(settings: Settings, plan: Plan, folder: Path) -> Iterator[Worker]:
    """`captioner worker` as it is, with the null model unless the plan names another."""
    hostname = f"captioner{os.getpid()}@bench"
    source = _make_source(plan, folder)
    size = DECODED_SIZE if plan.decode else UNDECODED_SIZE
    environment = captioner_environment(settings, folder, hostname, allowed_root=folder) | {
        "CAPTIONER_MODEL__ID": plan.model_id or f"{null_model.ID_PREFIX}{size}"
    }
    if not plan.decode:
        environment["CAPTIONER_MEDIA__DECODERS"] = "0"
    engine = create_store_engine(settings.database_url)
    try:
        with running(
            ["-m", "captioner", "worker"], environment, folder / "captioner.log"
        ) as process:
            worker = CaptionWorker(process, settings, hostname, engine, source)
            worker.wait_until_ready()
            yield worker
    finally:
        engine.dispose()


def captioner_environment(
    settings: Settings, folder: Path, hostname: str, *, allowed_root: Path, plugins: str = ""
) -> dict[str, str]:
    """The environment of a `captioner worker` that can be asked what its engine has done.

    Args:
        settings: whose servers it uses.
        folder: of the measurement; what makes it answer is put there.
        hostname: its name.
        allowed_root: where its sources are.
        plugins: which of the installed ones it has; what else is installed would be measured, too.
    """
    _install_plugin(folder)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return worker_environment(settings) | {
        "PYTHONPATH": os.pathsep.join(paths),
        "CAPTIONER_DATABASE__URL": settings.database_url,
        "CAPTIONER_MEDIA__ALLOWED_ROOTS": str(allowed_root),
        "CAPTIONER_WORKER__NAME": hostname,
        "CAPTIONER_PLUGINS__ENABLED": f"{PLUGIN},{plugins}",
    }


def worker_environment(settings: Settings) -> dict[str, str]:
    """This process's environment, and what was made for the measurement."""
    return dict(os.environ) | {
        "CAPTIONER_BROKER__URL": settings.broker_url,
        "CAPTIONER_BROKER__KEY_PREFIX": settings.broker.key_prefix,
        "CAPTIONER_WORKER__CONCURRENCY": str(settings.concurrency),
    }


def _make_source(plan: Plan, folder: Path) -> Path:
    if not plan.decode:
        path = folder / f"picture{null_model.SUFFIX}"
        path.write_bytes(b"\0")
        return path
    from PIL import Image

    path = folder / "picture.jpeg"
    # As rich in detail as a photograph, and the same every time.
    picture = Image.effect_mandelbrot(JPEG_SIZE, (-2.0, -1.2, 1.0, 1.2), 100)
    picture.convert("RGB").save(path, quality=85)
    return path


def _install_plugin(folder: Path) -> None:
    """Name the plugin as an installed distribution would, in a folder of `PYTHONPATH`."""
    info = folder / f"{PLUGIN}-{version('captioner')}.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {PLUGIN}\nVersion: {version('captioner')}\n",
        encoding="utf-8",
    )
    info.joinpath("entry_points.txt").write_text(
        f"[{ENTRY_POINT_GROUP}]\n{PLUGIN} = {null_model.__name__}\n", encoding="utf-8"
    )

"""`worker`: run a worker until it is told to stop."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from captioner.cli.environment import Broker, Database, Device, Dtype, Model, settings_from
from captioner.errors import SettingsError


def worker(
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    database: Database = None,
    broker: Broker = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            envvar="CAPTIONER_WORKER__CONCURRENCY",
            show_envvar=True,
            help="Jobs in hand at once; default: three batches' worth.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            "-n",
            envvar="CAPTIONER_WORKER__NAME",
            show_envvar=True,
            help="Name in Flower; %h is the host.",
        ),
    ] = None,
    queues: Annotated[
        str | None,
        typer.Option(
            "--queues",
            "-Q",
            envvar="CAPTIONER_WORKER__QUEUES",
            show_envvar=True,
            help="Queues to work for, separated by commas; `events` alone needs no model.",
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            "--log-level",
            envvar="CAPTIONER_LOG__LEVEL",
            show_envvar=True,
            help="Least level: DEBUG, INFO, WARNING or ERROR.",
        ),
    ] = None,
) -> None:
    """Run a worker until it is told to stop.

    It loads the model, then takes jobs from the broker until SIGTERM or Ctrl-C. With --queues
    events it loads none, and delivers events to plugins and webhooks.

    `celery -A captioner worker` does the same with Celery's own options.
    """
    settings = settings_from(
        model__id=model,
        model__device=device,
        model__dtype=dtype,
        database__url=database,
        broker__url=broker,
        worker__concurrency=concurrency,
        worker__name=name,
        worker__queues=queues,
        log__level=log_level,
    )
    _check_name(settings.worker.name)
    from captioner.celery import create_app, run_worker  # Celery: only where a worker is wanted
    from captioner.shutdown import leave

    create_app(settings).close()  # what is wrong with the broker's URL Celery says with code 1
    code = run_worker(settings)
    leave(code)
    raise typer.Exit(code)


def _check_name(name: str) -> None:
    """Refuse what Celery would fill in, and cannot."""
    unknown = set(re.findall(r"%([%\w])", name)) - set("hndiI%")
    if unknown:
        raise SettingsError(
            f"CAPTIONER_WORKER__NAME: %{min(unknown)} stands for nothing; "
            "%h is the host, and %% a percent sign"
        )

"""Options that many commands share. Each sets its twin in the environment.

So the command, its child processes and the settings all agree on one value.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from captioner.settings import Settings, load_settings

Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        envvar="CAPTIONER_DATABASE__URL",
        show_envvar=True,
        metavar="URL",
        help="postgresql+psycopg://… or sqlite:///…; default: SQLite in the data folder.",
    ),
]
Broker = Annotated[
    str | None,
    typer.Option(
        "--broker",
        envvar="CAPTIONER_BROKER__URL",
        show_envvar=True,
        metavar="URL",
        help="redis://…; default: a file in the data folder.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        envvar="CAPTIONER_MODEL__ID",
        show_envvar=True,
        metavar="ID",
        help="Hub id, local folder, or `demo`.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        envvar="CAPTIONER_MODEL__DEVICE",
        show_envvar=True,
        help="auto, cpu, cuda, cuda:N.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        envvar="CAPTIONER_MODEL__DTYPE",
        show_envvar=True,
        help="auto, float16, bfloat16, float32 or float64.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def settings_from(**values: object) -> Settings:
    """Write the options that were given into the environment and read all settings.

    Args:
        values: `section__name=value`; None leaves the setting as it is.

    Raises:
        SettingsError: a value cannot be used.
    """
    for name, value in values.items():
        if value is not None:
            os.environ[f"CAPTIONER_{name.upper()}"] = str(value)
    return load_settings()

"""`webhooks add`, `rotate`, `secret`, `reencrypt` and `new-key`: what has to do with secrets."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

import typer

from captioner.cli.environment import Database, Json
from captioner.cli.output import print_json, remarks
from captioner.cli.webhooks.naming import Endpoint, endpoint_id_of, mapping_of, opened
from captioner.errors import InvalidRequestError
from captioner.webhook_url import webhook_display
from captioner.webhooks.endpoints import (
    JOBS_ENDPOINT_ID,
    add_endpoint,
    reencrypt_secrets,
    rotate_secret,
    secret_of_receiver,
)

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def add(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="https://… or http://…", show_default=False)
    ],
    description: Annotated[str, typer.Option("--description", help="For people.")] = "",
    events: Annotated[
        str,
        typer.Option(
            "--events",
            metavar="TYPE,...",
            help="Only these, such as caption.succeeded,caption.failed; default: all.",
        ),
    ] = "",
    *,
    as_json: Json = False,
    database: Database = None,
) -> None:
    """Register a receiver.

    Its signing secret is shown now, and never again.
    """
    wanted = [part.strip() for part in events.split(",") if part.strip()]
    with opened(database) as (store, settings):
        endpoint, secret = add_endpoint(
            store, settings, url, description=description, event_types=wanted
        )
    _show_secret(mapping_of(endpoint), secret, as_json=as_json)


def rotate(
    endpoint: Endpoint,
    keep_previous: Annotated[
        str,
        typer.Option(
            "--keep-previous",
            metavar="TIME",
            help="Sign with the old secret too for so long, such as 24h, 30m or 7d.",
        ),
    ] = "0s",
    *,
    as_json: Json = False,
    database: Database = None,
) -> None:
    """Replace a signing secret.

    The new one is shown now, and never again.

    `jobs`: those of all receivers that jobs name; `webhooks secret URL` shows each.
    """
    keep = _time(keep_previous)
    with opened(database) as (store, settings):
        endpoint_id = endpoint_id_of(endpoint)
        secret = rotate_secret(store, settings, endpoint_id, keep_previous=keep)
        mapping = mapping_of(store.endpoint(endpoint_id))
    if endpoint_id != JOBS_ENDPOINT_ID:
        _show_secret(mapping, secret, as_json=as_json)
    elif as_json:
        print_json(mapping)
    else:
        typer.echo("jobs: every receiver has a new secret; captioner webhooks secret URL shows it")


def secret(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="A webhook_url; its query does not count.", show_default=False
        ),
    ],
    *,
    as_json: Json = False,
    database: Database = None,
) -> None:
    """Show the secret of a receiver that jobs name.

    They name it as their webhook_url. Tell the secret to its owner, and to nobody else. Every
    receiver has its own.
    """
    with opened(database) as (store, settings):
        found = secret_of_receiver(store, settings, url)
    shown = webhook_display(url)
    if as_json:
        print_json({"url": shown, "secret": found})
    else:
        typer.echo(f"receiver  {shown}\nsecret    {found}")


def reencrypt(database: Database = None) -> None:
    """Encrypt all secrets with the first key.

    That is the first of CAPTIONER_WEBHOOKS__ENCRYPTION_KEY. Afterwards the other keys are not
    needed any more.
    """
    with opened(database) as (store, settings):
        count = reencrypt_secrets(store, settings)
    typer.echo(f"{count} endpoints: their secrets are encrypted with the first key")


def new_key() -> None:
    """Print a key for CAPTIONER_WEBHOOKS__ENCRYPTION_KEY."""
    from captioner.webhooks.encryption import new_key as make

    typer.echo(make())


def _show_secret(mapping: dict[str, Any], secret: str, *, as_json: bool) -> None:
    if as_json:
        print_json({**mapping, "secret": secret})
        return
    typer.echo(f"endpoint  {mapping['id']}\nsecret    {secret}")
    remarks.print("the secret is not shown again; tell it the receiver", style="yellow")


def _time(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,6})([smhd])", text.strip())
    if not found:
        raise InvalidRequestError(f"--keep-previous {text!r} must be a time such as 24h, 30m or 7d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})

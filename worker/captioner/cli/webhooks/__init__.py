"""`webhooks`: receivers of events, and what was delivered to them."""

from __future__ import annotations

import typer

from captioner.cli.webhooks import deliveries, receivers, secrets

app = typer.Typer(
    help="Register receivers of webhooks, and see what they got.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("add")(secrets.add)
app.command("list")(receivers.list_endpoints)
app.command("rotate")(secrets.rotate)
app.command("secret")(secrets.secret)
app.command("reencrypt")(secrets.reencrypt)
app.command("enable")(receivers.enable)
app.command("disable")(receivers.disable)
app.command("remove")(receivers.remove)
app.command("test")(deliveries.send_test_event)
app.command("deliveries")(deliveries.deliveries)
app.command("redeliver")(deliveries.redeliver)
app.command("new-key")(secrets.new_key)

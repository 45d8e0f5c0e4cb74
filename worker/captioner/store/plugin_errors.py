"""How often plugins failed, over all processes of an installation."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, case, select

from captioner.plugin_errors import PluginErrorCount
from captioner.store.models import MAX_PLUGIN_CHARACTERS, PluginErrorRow
from captioner.store.statements import insert_into


def count_plugin_errors(connection: Connection, counts: Sequence[PluginErrorCount]) -> None:
    """Add counts to what is there; the later error is the last one, whoever writes first."""
    wanted = insert_into(connection, PluginErrorRow).values(
        # In one order: two workers that locked the same rows otherwise would wait for each other.
        [
            {
                "plugin": count.plugin[:MAX_PLUGIN_CHARACTERS],
                "hook": count.hook,
                "errors": count.errors,
                "last_error": count.last_error.encode(errors="replace").decode(),
                "last_at": count.last_at,
            }
            for count in sorted(counts, key=lambda count: (count.plugin, count.hook))
        ]
    )
    new = wanted.excluded
    later = new.last_at >= PluginErrorRow.last_at
    connection.execute(
        wanted.on_conflict_do_update(
            index_elements=[PluginErrorRow.plugin, PluginErrorRow.hook],
            set_={
                "errors": PluginErrorRow.errors + new.errors,
                "last_error": case((later, new.last_error), else_=PluginErrorRow.last_error),
                "last_at": case((later, new.last_at), else_=PluginErrorRow.last_at),
            },
        )
    )


def plugin_errors(connection: Connection) -> list[PluginErrorCount]:
    """All of them, by plugin and hook."""
    query = select(PluginErrorRow.__table__).order_by(PluginErrorRow.plugin, PluginErrorRow.hook)
    return [
        PluginErrorCount(row.plugin, row.hook, row.errors, row.last_error, row.last_at)
        for row in connection.execute(query)
    ]

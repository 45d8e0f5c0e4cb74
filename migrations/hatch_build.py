"""Build hook: a wheel carries the migrations inside the package, an editable install uses these.

hatchling's own `force-include` would leave a stale copy beside an editable install.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class MigrationsHook(BuildHookInterface[Any]):
    """Puts `migrations/` into standard wheels as `captioner/_migrations`."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files; `version` is `standard` or `editable`."""
        if version == "standard":
            build_data["force_include"]["migrations"] = "captioner/_migrations"

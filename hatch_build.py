"""Hatchling's build hook: link the packages into `src/hostler` before an editable install.

A checkout has these links; an sdist cannot carry them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGES = ("gateway", "adapters", "supervisor", "profiles")


class LinkPackages(BuildHookInterface[BuilderConfig]):
    """`version` is "editable" for `pip install -e`, "standard" for a wheel, which maps the folders by itself."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            return
        for package in PACKAGES:
            link = Path(self.root, "src", "hostler", package)
            if not link.is_symlink():
                link.symlink_to(Path("..", "..", package), target_is_directory=True)

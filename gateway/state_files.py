"""Where the gateway keeps the files that no setting names."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from hostler.profiles.file_reading import home_path


def state_file(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The file of this name in systemd's state directory, else in the user's."""
    directory = service_directory(environ)
    return (user_directory(environ) if directory is None else directory) / name


def service_directory(environ: Mapping[str, str]) -> Path | None:
    """The state directory that systemd gives a service; `None` elsewhere."""
    directories = environ.get("STATE_DIRECTORY")
    return Path(directories.partition(":")[0]) if directories else None  # several are joined by colons


def user_directory(environ: Mapping[str, str]) -> Path:
    """The state directory of the user who runs the gateway. Raises `RuntimeError` if the home directory is unknown."""
    if sys.platform == "win32" and not environ.get("XDG_STATE_HOME"):
        return home_path(environ.get("LOCALAPPDATA") or "~/AppData/Local") / "hostler" / "state"
    return home_path(environ.get("XDG_STATE_HOME") or "~/.local/state") / "hostler"

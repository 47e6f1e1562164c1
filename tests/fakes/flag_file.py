"""Files whose existence scripted engines wait for: tests use them to order events without relying on time."""

from __future__ import annotations

from pathlib import Path


class FlagFile:
    """A file that exists while the flag is set. An engine's script refers to it by its `path`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.path = str(file)

    def set(self) -> None:
        """Create the file: engines stop waiting."""
        self._file.touch()

    def clear(self) -> None:
        """Remove the file: engines wait again."""
        self._file.unlink(missing_ok=True)

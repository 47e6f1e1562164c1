"""What scripted engines wait for: a test that opens a gate knows what happens before and what after, on any machine."""

from __future__ import annotations

from pathlib import Path


class Gate:
    """A file: open once it is there. In an engine's script stands its `path`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.path = str(file)

    def open(self) -> None:
        """From now on nobody waits."""
        self._file.touch()

    def close(self) -> None:
        """Who comes from now on waits again."""
        self._file.unlink(missing_ok=True)

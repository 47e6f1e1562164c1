"""How long models took to load: remembered over restarts, since waiting people are told what to expect."""

from __future__ import annotations

import contextlib
from pathlib import Path

from hostler.supervisor.notes import Note


class LoadTimes:
    """Seconds per model. Without a file they are forgotten at the end."""

    def __init__(self, file: Path | None = None) -> None:
        self._note = Note(file, dict[str, float])
        self._seconds: dict[str, float] = {}

    def get(self, model: str) -> float | None:
        """What the next load of `model` will probably take."""
        return self._seconds.get(model)

    def learn(self, model: str, seconds: float) -> None:
        """It took this long. Newer loads count more."""
        before = self._seconds.get(model)
        self._seconds[model] = round(seconds if before is None else 0.3 * before + 0.7 * seconds, 3)

    def read(self) -> None:
        """Take over what the file remembers."""
        self._seconds = (self._note.read() or {}) | self._seconds

    def write(self) -> None:
        """Keep what is known. Not being able to is not worth a failure."""
        with contextlib.suppress(OSError):
            self._note.write(lambda: dict(self._seconds))

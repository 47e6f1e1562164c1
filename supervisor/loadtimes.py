"""How long models took to load: remembered over restarts, since waiting people are told what to expect."""

from __future__ import annotations

from pathlib import Path

import msgspec


class LoadTimes:
    """Seconds per model. Without a file they are forgotten at the end; a damaged file is as good as none."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._seconds: dict[str, float] = {}

    def get(self, model: str) -> float | None:
        """What the next load of `model` will probably take."""
        return self._seconds.get(model)

    def learn(self, model: str, seconds: float) -> None:
        """It took this long. Newer loads count more."""
        before = self._seconds.get(model)
        self._seconds[model] = round(seconds if before is None else 0.3 * before + 0.7 * seconds, 3)

    def read(self) -> None:
        """Take over what the file remembers, and remove what was left of one by a supervisor that died."""
        if self._file is None:
            return
        try:
            self._fresh(self._file).unlink(missing_ok=True)
            known = msgspec.json.decode(self._file.read_bytes(), type=dict[str, float])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return
        self._seconds = known | self._seconds

    def write(self) -> None:
        """Keep what is known; the file is whole at every moment. Not being able to is not worth a failure."""
        if self._file is None:
            return
        fresh = self._fresh(self._file)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(msgspec.json.encode(self._seconds))
            fresh.replace(self._file)
        except OSError:
            return

    @staticmethod
    def _fresh(file: Path) -> Path:
        return file.with_name(file.name + ".new")

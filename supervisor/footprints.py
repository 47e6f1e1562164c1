"""What models were seen to take, remembered over restarts: an estimate is corrected before the engine first runs again."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from hostler.supervisor.memory import Observed
from hostler.supervisor.notes import Note


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen, and of what: another file or other arguments make `key` another one."""

    key: str
    seen: Observed


class Footprints:
    """One for each model. Without a file they are forgotten at the end."""

    def __init__(self, file: Path | None = None) -> None:
        self._note = Note(file, dict[str, Footprint])
        self._known: dict[str, Footprint] = {}

    def get(self, model: str, key: str) -> Observed | None:
        """What was seen of `model` while it was what `key` says."""
        known = self._known.get(model)
        return known.seen if known is not None and known.key == key else None

    def learn(self, model: str, key: str, seen: Observed) -> bool:
        """This was seen of it. Whether that is worth writing down: by more than a twentieth, or of more weight."""
        before = self.get(model, key) or Observed()
        if before.settled == seen.settled and not differs(before.rss, seen.rss) and not differs(before.gpu, seen.gpu):
            return False
        self._known[model] = Footprint(key=key, seen=seen)
        return True

    def read(self) -> None:
        """Take over what the file remembers."""
        self._known = (self._note.read() or {}) | self._known

    def write(self) -> None:
        """Keep what is known. Not being able to is not worth a failure."""
        with contextlib.suppress(OSError):
            self._note.write(lambda: dict(self._known))


def differs(before: int, now: int) -> bool:
    """By more than a twentieth, which is worth telling."""
    return abs(now - before) * 20 > max(before, now)

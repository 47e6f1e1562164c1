"""What models were seen to take, remembered over restarts: an estimate is corrected before the engine first runs again."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec

from hostler.supervisor.memory import Observed


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen, and of what: another file or other arguments make `key` another one."""

    key: str
    seen: Observed


class Footprints:
    """One for each model. Without a file they are forgotten at the end; a damaged file is as good as none."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._known: dict[str, Footprint] = {}
        self._writing = threading.Lock()

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
        """Take over what the file remembers, and remove what was left of one by a supervisor that died."""
        if self._file is None:
            return
        try:
            self._fresh(self._file).unlink(missing_ok=True)
            known = msgspec.json.decode(self._file.read_bytes(), type=dict[str, Footprint])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        self._known = known | self._known

    def write(self) -> None:
        """Keep what is known; the file is whole at every moment. Not being able to is not worth a failure."""
        if self._file is None:
            return
        with self._writing:
            fresh = self._fresh(self._file)
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                fresh.write_bytes(msgspec.json.encode(dict(self._known)))
                fresh.replace(self._file)
            except OSError:
                return

    @staticmethod
    def _fresh(file: Path) -> Path:
        return file.with_name(file.name + ".new")


def differs(before: int, now: int) -> bool:
    """By more than a twentieth, which is worth telling."""
    return abs(now - before) * 20 > max(before, now)

"""A small file in which a host notes one value over restarts: whole at every moment, and as good as none if damaged."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Note(Generic[T]):
    """Both methods block. Without a file nothing is known and nothing is kept."""

    def __init__(self, file: Path | None, kind: type[T]) -> None:
        self.file = file
        self._kind = kind
        self._writing = threading.Lock()

    def read(self) -> T | None:
        """What was noted, if anything; and remove what was left half written by a supervisor that died."""
        if self.file is None:
            return None
        try:
            self._fresh(self.file).unlink(missing_ok=True)
            return msgspec.json.decode(self.file.read_bytes(), type=self._kind)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def write(self, value: Callable[[], T]) -> bool:
        """Note the value as it is when its turn has come. `False` without a file. Raises `OSError`."""
        if self.file is None:
            return False
        with self._writing:
            fresh = self._fresh(self.file)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(msgspec.json.encode(value()))
            fresh.replace(self.file)
        return True

    @staticmethod
    def _fresh(file: Path) -> Path:
        return file.with_name(file.name + ".new")

"""Which models an operator pinned or unpinned, other than their profiles say: remembered over restarts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from pathlib import Path

import msgspec

logger = logging.getLogger(__name__)


class Pins:
    """An operator's word on each model. Without a file it is forgotten at the end; a damaged file is as good as none."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._said: dict[str, bool] = {}
        self._writing = threading.Lock()

    def get(self, model: str, otherwise: bool) -> bool:
        """Whether `model` is pinned; `otherwise` is what its profile says."""
        return self._said.get(model, otherwise)

    def set(self, model: str, pinned: bool, otherwise: bool) -> None:
        """The operator's word. One that says the same as the profile need not be remembered: the profile counts again."""
        if pinned is otherwise:
            self._said.pop(model, None)
        else:
            self._said[model] = pinned

    def keep(self, models: Collection[str]) -> None:
        """Forget all others: their profiles are gone."""
        for model in [model for model in self._said if model not in models]:
            del self._said[model]

    def read(self) -> None:
        """Take over what the file remembers, and remove what was left of one by a supervisor that died."""
        if self._file is None:
            return
        try:
            self._fresh(self._file).unlink(missing_ok=True)
            known = msgspec.json.decode(self._file.read_bytes(), type=dict[str, bool])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return
        self._said = known | self._said

    def write(self) -> bool:
        """Keep what is known; the file is whole at every moment. `False` if the disk did not take it."""
        if self._file is None:
            return False
        with self._writing:
            fresh = self._fresh(self._file)
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                fresh.write_bytes(msgspec.json.encode(dict(self._said)))
                fresh.replace(self._file)
            except OSError as error:
                logger.warning("%s: a pin is forgotten at the next restart: %s", self._file, error)
                return False
        return True

    @staticmethod
    def _fresh(file: Path) -> Path:
        return file.with_name(file.name + ".new")

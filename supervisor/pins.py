"""Which models an operator pinned or unpinned, other than their profiles say: remembered over restarts."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from hostler.supervisor.notes import Note

logger = logging.getLogger(__name__)


class Pins:
    """An operator's word on each model. Without a file it is forgotten at the end."""

    def __init__(self, file: Path | None = None) -> None:
        self._note = Note(file, dict[str, bool])
        self._said: dict[str, bool] = {}

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
        """Take over what the file remembers."""
        self._said = (self._note.read() or {}) | self._said

    def write(self) -> bool:
        """Keep what is known. `False` if the disk did not take it."""
        try:
            return self._note.write(lambda: dict(self._said))
        except OSError as error:
            logger.warning("%s: a pin is forgotten at the next restart: %s", self._note.file, error)
            return False

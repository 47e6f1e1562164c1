"""Which gateway's orders a host takes: those of the highest epoch that it has seen, over its own restarts too."""

from __future__ import annotations

import logging
from pathlib import Path

from hostler.supervisor.contract import StaleEpoch
from hostler.supervisor.notes import Note

logger = logging.getLogger(__name__)


class Epochs:
    """The highest epoch that an order carried. Without a file it is forgotten at the end.

    A gateway that was overtaken may not know it yet, and would be obeyed again by a host that forgets.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._note = Note(file, int)
        self._tried = 0
        self.seen = 0

    @property
    def fresh(self) -> bool:
        """Whether one was seen that `write` has not been asked to keep yet."""
        return self.seen > self._tried

    def admit(self, epoch: int | None) -> None:
        """An order carries it; `None` is for orders of people, which are always taken. Raises `StaleEpoch`."""
        if epoch is None:
            return
        if epoch < self.seen:
            raise StaleEpoch(f"epoch {epoch} is over, {self.seen} has been seen")
        self.seen = epoch

    def read(self) -> None:
        """Take over what the file remembers."""
        self._tried = self._note.read() or 0
        self.seen = max(self.seen, self._tried)

    def write(self) -> None:
        """Keep what is known. A disk that does not take it costs only that."""
        self._tried = self.seen
        try:
            self._note.write(lambda: self.seen)
        except OSError as error:
            logger.warning(
                "%s: which gateway may give orders is forgotten at the next restart: %s", self._note.file, error
            )

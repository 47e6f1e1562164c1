"""Which gateway's orders a host takes: those of the highest epoch that it has seen, over its own restarts too."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from hostler.supervisor.contract import StaleEpoch

T = TypeVar("T")


class JsonStore(Generic[T]):
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


logger = logging.getLogger(__name__)


class EpochStore:
    """The highest epoch that an order carried. Without a file it is forgotten at the end.

    A gateway that was overtaken may not know it yet, and would be obeyed again by a host that forgets.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._note = JsonStore(file, int)
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


class LoadTimeStore:
    """Seconds per model. Without a file they are forgotten at the end."""

    def __init__(self, file: Path | None = None) -> None:
        self._note = JsonStore(file, dict[str, float])
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


class PinStore:
    """An operator's word on each model. Without a file it is forgotten at the end."""

    def __init__(self, file: Path | None = None) -> None:
        self._note = JsonStore(file, dict[str, bool])
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

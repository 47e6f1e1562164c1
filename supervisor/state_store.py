"""State that survives a restart in small JSON files. One class for the files, one for each thing kept in them."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from hostler.profiles.file_flags import BINARY
from hostler.profiles.file_reading import FileTooLarge, read_limited

T = TypeVar("T")

#: The version of the envelope that values are written in. Files of older releases hold the bare value.
VERSION: Final = 1

#: Bytes of a file, at most.
MAX_BYTES: Final = 64 * 1024**2

logger = logging.getLogger(__name__)


class StateFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Where a host keeps its state over restarts; `None` forgets it."""

    load_times: Path | None = None
    pins: Path | None = None
    memory: Path | None = None
    model_leases: Path | None = None
    drain: Path | None = None

    @staticmethod
    def in_folder(folder: Path) -> StateFiles:
        """The files in the cache folder of a machine."""
        return StateFiles(
            load_times=folder / "load-times.json", pins=folder / "pins.json", memory=folder / "footprints.json",
            model_leases=folder / "model-leases.json", drain=folder / "drain.json",
        )  # fmt: skip


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    value: msgspec.Raw


class JsonStore(Generic[T]):
    """One value in one JSON file, readable by its owner only and replaced as a whole.

    `contents` names the value in log messages, as in "pins". `sync` flushes each write to the disk, so that it survives
    a power cut. Without a file nothing is read or kept. All methods block; `write` may be called from several threads.
    """

    def __init__(self, file: Path | None, kind: type[T], *, contents: str, sync: bool = False) -> None:
        self.file = file
        self._kind = kind
        self._contents = contents
        self._sync = sync
        self._lock = threading.Lock()
        self._write_failed = False

    def read(self) -> T | None:
        """The stored value; `None` if there is none. An unreadable file is logged and treated as missing."""
        if self.file is None:
            return None
        self._remove_leftovers(self.file)
        try:
            return self._decode(read_limited(self.file, MAX_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, FileTooLarge, msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
            logger.warning("%s: cannot be read, %s lost: %s", self.file, self._contents, error)
            return None

    def write(self, value: Callable[[], T]) -> bool:
        """Store what `value` returns once earlier writes are done. Whether it was stored; a failure is logged once."""
        if self.file is None:
            return False
        with self._lock:
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                content = msgspec.Raw(msgspec.json.encode(value()))
                replace_file(self.file, msgspec.json.encode(_Envelope(VERSION, content)), sync=self._sync)
            except OSError as error:
                if not self._write_failed:
                    logger.warning(
                        "%s: cannot be written, %s will be lost at the next restart: %s",
                        self.file, self._contents, error,
                    )  # fmt: skip
                self._write_failed = True
                return False
            self._write_failed = False
        return True

    def _decode(self, content: bytes) -> T:
        try:
            envelope = msgspec.json.decode(content, type=_Envelope)
        except msgspec.ValidationError:
            return msgspec.json.decode(content, type=self._kind)
        if envelope.version > VERSION:
            raise ValueError(f"format version {envelope.version} was written by a newer release")
        return msgspec.json.decode(envelope.value, type=self._kind)

    @staticmethod
    def _remove_leftovers(file: Path) -> None:
        """Remove files that a process half wrote before it was killed. One that cannot be removed does no harm."""
        with contextlib.suppress(OSError):
            for leftover in file.parent.glob(f"{glob.escape(file.name)}*.new"):
                pid = leftover.name.removesuffix(".new").rpartition(".")[2]
                if not pid.isdecimal() or not _is_running(int(pid)):
                    with contextlib.suppress(OSError):
                        leftover.unlink()


def replace_file(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write a file, readable by its owner only, so that others see the old content or the new one. Raises `OSError`.

    With `sync` the content is on the disk before it replaces the old one.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o600), "wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    fresh.replace(path)


def _is_running(pid: int) -> bool:
    if sys.platform == "win32":  # where signal 0 is a Ctrl-C
        import psutil  # not at start: only for files that a killed process has left

        return psutil.pid_exists(pid) and pid != os.getpid()
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return pid != os.getpid()


class LoadTimeStore:
    """How long each model takes to load, in seconds, as a moving average."""

    def __init__(self, file: Path | None = None) -> None:
        self._store = JsonStore(file, dict[str, float], contents="load times")
        self._seconds: dict[str, float] = {}

    def get(self, model: str) -> float | None:
        """The expected duration of the next load."""
        return self._seconds.get(model)

    def record(self, model: str, seconds: float) -> None:
        """Add one measured load; newer ones weigh more."""
        before = self._seconds.get(model)
        self._seconds[model] = round(seconds if before is None else 0.3 * before + 0.7 * seconds, 3)

    def read(self) -> None:
        """Load the stored times."""
        self._seconds = (self._store.read() or {}) | self._seconds

    def write(self) -> None:
        """Store all times."""
        self._store.write(lambda: dict(self._seconds))


class DrainStore:
    """Whether an operator has taken the host out of service."""

    def __init__(self, file: Path | None = None) -> None:
        self._store = JsonStore(file, bool, contents="whether the host is drained", sync=True)
        self.draining = False

    def read(self) -> None:
        """Load the stored choice."""
        self.draining = bool(self._store.read()) or self.draining

    def write(self) -> bool:
        """Store the choice. Whether it survives a restart."""
        return self._store.write(lambda: self.draining)


class PinStore:
    """Which models an operator pinned or unpinned, where that differs from the profile."""

    def __init__(self, file: Path | None = None) -> None:
        self._store = JsonStore(file, dict[str, bool], contents="pins", sync=True)
        self._pinned: dict[str, bool] = {}

    def get(self, model: str, default: bool) -> bool:
        """Whether `model` is pinned; `default` is what its profile says."""
        return self._pinned.get(model, default)

    def set(self, model: str, pinned: bool, default: bool) -> None:
        """Record an operator's choice. A choice that equals `default` is dropped: the profile applies again."""
        if pinned is default:
            self._pinned.pop(model, None)
        else:
            self._pinned[model] = pinned

    def keep_only(self, models: Collection[str]) -> None:
        """Forget every model that is not in `models`."""
        for model in [model for model in self._pinned if model not in models]:
            del self._pinned[model]

    def read(self) -> None:
        """Load the stored pins."""
        self._pinned = (self._store.read() or {}) | self._pinned

    def write(self) -> bool:
        """Store all pins. Whether they survive a restart."""
        return self._store.write(lambda: dict(self._pinned))

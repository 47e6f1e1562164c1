"""The folder of saved slots: files of engines, each with a sidecar, and what is known of models and engines."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from hostler.supervisor.slot_table import KeptConversation
from hostler.supervisor.state_store import replace_file

#: The slot number of conversations that are in no slot.
COLD = -1

#: Disk space that is never used.
FREE_BYTES = 512 * 1024 * 1024

_BOOT = Path("/proc/sys/kernel/random/boot_id")

_Note = TypeVar("_Note", bound=msgspec.Struct)

logger = logging.getLogger(__name__)


class SlotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The sidecar of a saved slot: which engine it fits, and how large the file was when it was complete.

    `checkpoints` is the number of context checkpoints in it, `conversation` what it holds, if that is known. `slot` is
    `COLD` for a conversation that is in no slot.
    """

    key: str
    model: str
    slot: int
    n_saved: int
    n_written: int
    when: float
    boot: str = ""
    checkpoints: int = 0
    conversation: KeptConversation | None = None


class _Strikes(msgspec.Struct, frozen=True):
    model: str
    strikes: int


class _EngineAbility(msgspec.Struct, frozen=True):
    build: str
    architecture: str
    checkpoints: bool
    failed_rewinds: int = 0


class SlotFiles:
    """Saved slots in one directory: at most `max_bytes`, none older than `max_age_s`; the oldest are deleted first."""

    def __init__(self, directory: Path, *, max_bytes: int, max_age_s: float) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self._max_age_s = max_age_s

    def prepare(self, now: float) -> None:
        """Create the directory and remove what a killed supervisor left in it.

        Raises `PermissionError` for a directory that other users can read and that cannot be closed to them.
        """
        self.create()
        _refuse_shared(self.directory)
        # An existing directory may be open to other users, who must not read conversations.
        self.directory.chmod(0o700)
        for marker in self._glob("*.restoring"):
            self.drop(marker.stem, "its last restore did not finish")
            remove_file(marker)
        for part in (*self._glob("*.part"), *self._glob("*.new")):
            remove_file(part)
        names = {name for name, _ in self.records()}
        for orphan in self._glob("*.kv"):
            if orphan.stem not in names:
                self.drop(orphan.stem, "it has no sidecar")
        self.evict(0, now)

    def create(self) -> None:
        """Create the directory if it is missing. Raises `OSError`."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where the engine's file is, or would be."""
        return self.directory / f"{name}.kv"

    def add(self, part: Path, record: SlotRecord) -> None:
        """Keep a complete file that an engine has written to `part`. Raises `OSError`."""
        name = record_name(record)
        # A sidecar never lies beside another file than its own.
        self._sidecar(name).unlink(missing_ok=True)
        part.replace(self.path(name))
        try:
            replace_file(self._sidecar(name), msgspec.json.encode(record))
        except OSError:
            # A file without a sidecar would not count towards the size limit.
            self.forget(name)
            raise

    def records(self) -> Iterator[tuple[str, SlotRecord]]:
        """All saved slots with their names; files with damaged sidecars are deleted."""
        for sidecar in sorted(self.directory.glob("*.json")):
            try:
                record = msgspec.json.decode(sidecar.read_bytes(), type=SlotRecord)
            except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.drop(sidecar.stem, "its sidecar cannot be read")
                continue
            if sidecar.stem != record_name(record):
                self.drop(sidecar.stem, "its sidecar belongs to another file")
                continue
            yield sidecar.stem, record

    def of_key(self, key: str) -> list[tuple[str, SlotRecord]]:
        """The saved slots that fit engines of this key, in the order of their slots."""
        return sorted(((n, r) for n, r in self.records() if r.key == key), key=lambda found: found[1].slot)

    def damage(self, name: str, record: SlotRecord) -> str:
        """Why the file must not be restored; empty if it may: engines abort when a single byte is missing."""
        if record.boot != boot_id():
            # After a power cut a file may have its size and not its content.
            return "the machine was restarted"
        return "" if self.size(name) == record.n_written else "its size is wrong"

    def evict(self, wanted: int, now: float) -> None:
        """Delete expired slots, then the oldest ones until `wanted` more bytes fit."""
        held: list[tuple[float, str, int]] = []
        for name, record in list(self.records()):
            size = self.size(name)
            if size is None:
                self.forget(name)
            elif now - record.when > self._max_age_s:
                self.drop(name, "it is too old")
            else:
                held.append((record.when, name, size))
        total = sum(size for _, _, size in held)
        for _when, name, size in sorted(held):
            if total + wanted <= self.max_bytes:
                break
            self.drop(name, "space is needed")
            total -= size

    def drop(self, name: str, why: str) -> None:
        """Delete a slot, with a line in the log."""
        logger.info("saved slot %s deleted: %s", name, why)
        self.forget(name)

    def forget(self, name: str) -> None:
        """Delete a slot."""
        for path in (self._sidecar(name), self.path(name)):
            remove_file(path)

    def size(self, name: str) -> int | None:
        """The size of a saved slot, in bytes; `None` if there is none."""
        try:
            return self.path(name).stat().st_size
        except OSError:
            return None

    def total(self) -> int:
        """The bytes on disk."""
        return sum(self.size(name) or 0 for name, _ in self.records())

    def free(self) -> int:
        """The bytes that may still be written to this disk. Raises `OSError`."""
        return shutil.disk_usage(self.directory).free - FREE_BYTES

    # What is known of models and engines.

    def strikes(self, key: str) -> int:
        """How often in a row restoring was useless for engines of this key."""
        note = self._read(self._strike_file(key), _Strikes)
        return 0 if note is None else note.strikes

    def set_strikes(self, key: str, model: str, strikes: int) -> None:
        """Keep the number of useless restores over restarts."""
        if strikes:
            self._write(self._strike_file(key), _Strikes(model=model, strikes=strikes))
        else:
            remove_file(self._strike_file(key))

    def saves_checkpoints(self, build: str, architecture: str) -> bool | None:
        """Whether engines of this build save context checkpoints of such models; `None` as long as that is unknown."""
        note = self._ability(build, architecture)
        return None if note is None else note.checkpoints

    def set_saves_checkpoints(self, build: str, architecture: str, checkpoints: bool) -> None:
        """Remember what engines of this build do; that they have once saved checkpoints is not forgotten."""
        known = self._ability(build, architecture)
        if known is None or checkpoints > known.checkpoints:
            self._write_ability(_EngineAbility(build, architecture, checkpoints))

    def failed_rewinds(self, build: str, architecture: str) -> int:
        """How often in a row engines of this build could not take back a slot of such models."""
        note = self._ability(build, architecture)
        return 0 if note is None else note.failed_rewinds

    def set_failed_rewinds(self, build: str, architecture: str, failed: int) -> None:
        """Keep that number over restarts."""
        note = self._ability(build, architecture) or _EngineAbility(build, architecture, False)
        if note.failed_rewinds != failed:
            self._write_ability(msgspec.structs.replace(note, failed_rewinds=failed))

    def _ability(self, build: str, architecture: str) -> _EngineAbility | None:
        return self._read(self._ability_file(build, architecture), _EngineAbility)

    def _write_ability(self, note: _EngineAbility) -> None:
        self._write(self._ability_file(note.build, note.architecture), note)

    @staticmethod
    def _read(path: Path, kind: type[_Note]) -> _Note | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    @staticmethod
    def _write(path: Path, note: msgspec.Struct) -> None:
        try:
            replace_file(path, msgspec.json.encode(note))
        except OSError as error:
            logger.warning("%s: cannot be written: %s", path.parent, error.strerror)

    def _glob(self, pattern: str) -> list[Path]:
        """The saved files; directories of such a name are ignored."""
        return [path for path in self.directory.glob(pattern) if not path.is_dir()]

    def _strike_file(self, key: str) -> Path:
        return self.directory / f"{key[:16]}.strikes"

    def _ability_file(self, build: str, architecture: str) -> Path:
        digest = hashlib.sha256(f"{build} {architecture}".encode()).hexdigest()
        return self.directory / f"{digest[:16]}.engine"

    def _sidecar(self, name: str) -> Path:
        return self.directory / f"{name}.json"


def file_name(key: str, which: int | str) -> str:
    """The name of a saved slot or conversation, without its suffix."""
    return f"{key[:16]}-{which}"


def record_name(record: SlotRecord) -> str:
    """The name that a file with this sidecar must have."""
    if record.slot == COLD and record.conversation is not None:
        return file_name(record.key, record.conversation.name)
    return file_name(record.key, record.slot)


def boot_id() -> str:
    """Identifies this boot of the machine."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def remove_file(path: Path) -> None:
    """Delete a file, if there is one. Failures are logged."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s: cannot be removed: %s", path, error.strerror)


def _refuse_shared(directory: Path) -> None:
    """Raises `PermissionError` for a directory like /tmp: open to other users, and not ours or with folders in it."""
    if not hasattr(os, "geteuid"):
        return  # Windows: folders of a user are closed to others
    status = directory.stat()
    if not status.st_mode & 0o077:
        return
    shared = status.st_mode & stat.S_ISVTX or any(each.is_dir() for each in directory.iterdir())
    if status.st_uid != os.geteuid() or shared:
        raise PermissionError(f"{directory} is open to other users; set slots_dir to a directory of its own")

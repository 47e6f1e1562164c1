"""Saved slots: the key-value caches of conversations, which engines write before a stop and read after a start."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.engine_client import EngineError, request_json
from hostler.supervisor.engine_command import argument_number
from hostler.supervisor.slot_key import unsupported_reason
from hostler.supervisor.state_store import replace_file

#: Disk space that is never used.
FREE_BYTES = 512 * 1024 * 1024

#: After this many useless restores in a row a model's slots are no longer saved.
STRIKES = 2

_BOOT = Path("/proc/sys/kernel/random/boot_id")


logger = logging.getLogger(__name__)


class SlotLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long an engine may take, in seconds, to list its slots, to save one and to restore one."""

    list_s: float = 2.0
    save_s: float = 20.0
    restore_s: float = 20.0


class SlotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The sidecar of a saved slot: which engine it fits, and how large the file was when it was complete."""

    key: str
    model: str
    slot: int
    n_saved: int
    n_written: int
    when: float
    boot: str = ""


class SaveResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a save; `why` is the reason why nothing or less was saved, for the log."""

    slots: int = 0
    tokens: int = 0
    bytes: int = 0
    why: str = ""


class RestoreResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a restore. After `crashed` the engine must be started again; the file that crashed it is deleted."""

    slots: int = 0
    tokens: int = 0
    crashed: bool = False
    why: str = ""


class _Slot(msgspec.Struct, frozen=True):
    id: int
    is_processing: bool = False
    n_prompt_tokens: int | None = None


class _FileName(msgspec.Struct, frozen=True):
    filename: str


class _Written(msgspec.Struct, frozen=True):
    n_saved: int
    n_written: int


class _Read(msgspec.Struct, frozen=True):
    n_restored: int


class _Strikes(msgspec.Struct, frozen=True):
    model: str
    strikes: int


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s: cannot be removed: %s", path, error.strerror)


def _refuse_shared(directory: Path) -> None:
    """Raises `PermissionError` for a directory like /tmp: open to other users, and not ours or with folders in it."""
    status = directory.stat()
    if not status.st_mode & 0o077:
        return
    shared = status.st_mode & stat.S_ISVTX or any(each.is_dir() for each in directory.iterdir())
    if status.st_uid != os.geteuid() or shared:
        raise PermissionError(f"{directory} is open to other users; set slots_dir to a directory of its own")


class SlotCache:
    """Saved slots in one directory, which engines get as `--slot-save-path`.

    At most `max_bytes` are kept, none longer than `max_age_s`; the oldest are deleted first. No failure here is an error:
    the engine then processes the prompt again. `read_facts` reads a model file's header; it may block and raise `GGUFError`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int,
        max_age_s: float,
        min_tokens: int,
        limits: SlotLimits | None = None,
        read_facts: Callable[[Path], ModelFacts | None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self.read_facts = read_facts
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._min_tokens = min_tokens
        self._limits = limits or SlotLimits()
        self._clock = clock
        self._restored: dict[str, tuple[str, int]] = {}

    def prepare(self) -> None:
        """Create the directory and remove what a killed supervisor left in it. Call it before the first engine starts.

        Raises `PermissionError` for a directory that other users can read and that cannot be closed to them.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_shared(self.directory)
        # An existing directory may be open to other users, who must not read conversations.
        self.directory.chmod(0o700)
        for marker in self._files("*.restoring"):
            self._drop(marker.stem, "its last restore did not finish")
            _remove(marker)
        for part in (*self._files("*.part"), *self._files("*.new")):
            _remove(part)
        names = {name for name, _ in self._records()}
        for orphan in self._files("*.kv"):
            if orphan.stem not in names:
                self._drop(orphan.stem, "it has no sidecar")
        self._evict(0)

    async def save(self, address: EngineAddress, profile: Profile, facts: ModelFacts | None, key: str) -> SaveResult:
        """Save the idle slots, after the last response and before the engine stops. Never raises."""
        self._restored.pop(profile.name, None)
        why = unsupported_reason(profile, facts) or self._disabled(key)
        if why:
            return SaveResult(why=why)
        try:
            slots = await request_json(address, "GET", "/slots", list[_Slot], timeout_s=self._limits.list_s)
        except EngineError as error:
            return SaveResult(why=str(error))
        saved = SaveResult()
        for slot in slots:
            # A slot without a number was not used since the start: what was restored into it is still on disk.
            if slot.is_processing or slot.n_prompt_tokens is None:
                continue
            if slot.n_prompt_tokens < self._min_tokens:
                self._forget(_name(key, slot.id))
                continue
            one = await self._save_one(address, profile, facts, key, slot.id, slot.n_prompt_tokens)
            saved = SaveResult(
                slots=saved.slots + one.slots,
                tokens=saved.tokens + one.tokens,
                bytes=saved.bytes + one.bytes,
                why=saved.why or one.why,
            )
        self._evict(0)
        return saved

    async def restore(
        self, address: EngineAddress, profile: Profile, facts: ModelFacts | None, key: str
    ) -> RestoreResult:
        """Restore the slots that fit `key` into a new engine, before its first request. Never raises."""
        self._restored.pop(profile.name, None)
        why = unsupported_reason(profile, facts) or self._disabled(key)
        if why:
            return RestoreResult(why=why)
        self._evict(0)
        restored = RestoreResult()
        mine = sorted((record.slot, name, record) for name, record in self._records() if record.key == key)
        for slot, name, record in mine:
            if slot >= (argument_number(profile.args, "-np", "--parallel") or profile.parallel):
                continue
            # The engine aborts when a single byte is missing.
            if self._size(name) != record.n_written or record.boot != _boot():
                self._drop(name, "its size is wrong" if record.boot == _boot() else "the machine was restarted")
                continue
            try:
                await self._restore_one(address, name, record)
            except (EngineError, OSError) as error:
                logger.info("saved slot %s was not restored: %s", name, error)
                if isinstance(error, EngineError) and error.status is None:
                    return RestoreResult(slots=restored.slots, tokens=restored.tokens, crashed=True, why=str(error))
                continue
            restored = RestoreResult(slots=restored.slots + 1, tokens=restored.tokens + record.n_saved)
            shortest = min(record.n_saved, self._restored.get(profile.name, (key, record.n_saved))[1])
            self._restored[profile.name] = (key, shortest)
        return restored

    def record_first_response(self, model: str, cache_n: int, prompt_n: int | None = None) -> None:
        """Judge a restore by the first response after it: `cache_n` prompt tokens were cached, `prompt_n` were processed.

        A prompt as long as a restored conversation with nothing cached is a strike. After `STRIKES` in a row, restarts
        included, the model's slots are no longer saved until its file, build or arguments change. Blocks.
        """
        key, shortest = self._restored.pop(model, ("", 0))
        if not key:
            return
        strikes = self._strikes(key)
        if cache_n > 0:
            if strikes:
                self._strike_file(key).unlink(missing_ok=True)
        elif prompt_n is None or prompt_n >= shortest:
            logger.warning("%s: processed a restored conversation again", model)
            try:
                replace_file(self._strike_file(key), msgspec.json.encode(_Strikes(model=model, strikes=strikes + 1)))
            except OSError as error:
                logger.warning("%s: cannot be written: %s", self.directory, error.strerror)
            if strikes + 1 >= STRIKES:
                for name, record in list(self._records()):
                    if record.key == key:
                        self._drop(name, "restoring does not help this model")

    def total(self) -> int:
        """The bytes on disk."""
        return sum(self._size(name) or 0 for name, _ in self._records())

    async def _save_one(
        self, address: EngineAddress, profile: Profile, facts: ModelFacts | None, key: str, slot: int, tokens: int
    ) -> SaveResult:
        expected = tokens * (facts.kv_bytes_per_token if facts else 0)
        # With smaller cache types it will be less; the real size is checked afterwards.
        if expected // 4 > self._max_bytes or expected > self._free():
            why = f"{profile.name}: slot {slot} holds {tokens} tokens, too large to save"
            logger.info("%s", why)
            return SaveResult(why=why)
        self._evict(min(expected, self._max_bytes))
        temporary = f"{key[:16]}-{slot}-{secrets.token_hex(4)}.part"
        part = self.directory / temporary
        try:
            path = f"/slots/{slot}?action=save"
            body = _FileName(filename=temporary)
            written = await request_json(address, "POST", path, _Written, body=body, timeout_s=self._limits.save_s)
            size = part.stat().st_size
            if size != written.n_written or written.n_saved <= 0:
                raise EngineError(f"it wrote {size} bytes but reported {written.n_written}")
            if size > self._max_bytes:
                raise EngineError(f"{size} bytes exceed slots_max")
            name = _name(key, slot)
            record = SlotRecord(
                key=key,
                model=profile.name,
                slot=slot,
                n_saved=written.n_saved,
                n_written=written.n_written,
                when=self._clock(),
                boot=_boot(),
            )
            # A sidecar never lies beside another file than its own.
            self._sidecar(name).unlink(missing_ok=True)
            part.replace(self.directory / f"{name}.kv")
            replace_file(self._sidecar(name), msgspec.json.encode(record))
        except (EngineError, OSError) as error:
            why = f"{profile.name}: slot {slot} was not saved: {error}"
            logger.info("%s", why)
            return SaveResult(why=why)
        finally:
            part.unlink(missing_ok=True)
        return SaveResult(slots=1, tokens=written.n_saved, bytes=written.n_written)

    async def _restore_one(self, address: EngineAddress, name: str, record: SlotRecord) -> None:
        """Raises `EngineError`. Without a response the file is deleted: it may be what crashed the engine."""
        marker = self.directory / f"{name}.restoring"
        marker.touch()
        answered = False
        try:
            path = f"/slots/{record.slot}?action=restore"
            body = _FileName(filename=f"{name}.kv")
            read = await request_json(address, "POST", path, _Read, body=body, timeout_s=self._limits.restore_s)
            if read.n_restored != record.n_saved:
                raise EngineError(f"{read.n_restored} of {record.n_saved} tokens were restored", 200)
            answered = True
        finally:
            # Also when cancelled: the process may have noticed the crash before this request does.
            if not answered:
                self._drop(name, "its restore failed")
            # Only a supervisor that is killed in here leaves the marker.
            marker.unlink(missing_ok=True)

    def _evict(self, wanted: int) -> None:
        """Delete expired slots, then the oldest ones until `wanted` more bytes fit."""
        now = self._clock()
        held: list[tuple[float, str, int]] = []
        for name, record in list(self._records()):
            size = self._size(name)
            if size is None:
                self._forget(name)
            elif now - record.when > self._max_age_s:
                self._drop(name, "it is too old")
            else:
                held.append((record.when, name, size))
        total = sum(size for _, _, size in held)
        for _when, name, size in sorted(held):
            if total + wanted <= self._max_bytes:
                break
            self._drop(name, "space is needed")
            total -= size

    def _files(self, pattern: str) -> list[Path]:
        """The saved files; directories of such a name are ignored."""
        return [path for path in self.directory.glob(pattern) if not path.is_dir()]

    def _records(self) -> Iterator[tuple[str, SlotRecord]]:
        for sidecar in sorted(self.directory.glob("*.json")):
            try:
                record = msgspec.json.decode(sidecar.read_bytes(), type=SlotRecord)
            except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._drop(sidecar.stem, "its sidecar cannot be read")
                continue
            if sidecar.stem != _name(record.key, record.slot):
                self._drop(sidecar.stem, "its sidecar belongs to another file")
                continue
            yield sidecar.stem, record

    def _drop(self, name: str, why: str) -> None:
        logger.info("saved slot %s deleted: %s", name, why)
        self._forget(name)

    def _forget(self, name: str) -> None:
        for path in (self._sidecar(name), self.directory / f"{name}.kv"):
            _remove(path)

    def _size(self, name: str) -> int | None:
        try:
            return (self.directory / f"{name}.kv").stat().st_size
        except OSError:
            return None

    def _free(self) -> int:
        try:
            return shutil.disk_usage(self.directory).free - FREE_BYTES
        except OSError:
            return 0

    def _disabled(self, key: str) -> str:
        return "restoring did not help this model" if self._strikes(key) >= STRIKES else ""

    def _strikes(self, key: str) -> int:
        try:
            return msgspec.json.decode(self._strike_file(key).read_bytes(), type=_Strikes).strikes
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return 0

    def _strike_file(self, key: str) -> Path:
        return self.directory / f"{key[:16]}.strikes"

    def _sidecar(self, name: str) -> Path:
        return self.directory / f"{name}.json"


def _name(key: str, slot: int) -> str:
    return f"{key[:16]}-{slot}"


def _boot() -> str:
    """Identifies this boot: after a power cut a file may have its size and not its content."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""

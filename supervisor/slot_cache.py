"""Conversation caches kept over a stop: saved by the engine, named, checked and bounded here. Starts no engine."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio.to_thread
import msgspec

from hostler.profiles.gguf_header import GGUFError
from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.command import argument_number
from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.engine_client import EngineError, engine_build, request_json
from hostler.supervisor.model import engine_profile
from hostler.supervisor.slot_key import signature, slot_key, unsupported_reason

#: This much of the disk is left to others.
FREE_BYTES = 512 * 1024 * 1024

#: How often in a row a restored conversation may be read anew before its model is not restored any more.
STRIKES = 2

_BOOT = Path("/proc/sys/kernel/random/boot_id")


logger = logging.getLogger(__name__)


class SlotLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long an engine may take, in seconds: to say what its slots hold, to write one, to read one."""

    list_s: float = 2.0
    save_s: float = 20.0
    restore_s: float = 20.0


class SlotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is written beside a file: whose it is and how it looked when it was whole."""

    key: str
    model: str
    slot: int
    n_saved: int
    n_written: int
    when: float
    boot: str = ""


class SaveResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a save did: conversations, their tokens and bytes; `why` nothing was kept, for the log."""

    slots: int = 0
    tokens: int = 0
    bytes: int = 0
    why: str = ""


class RestoreResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a restore did. After `crashed` the engine must be started again; the file that did it is gone."""

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
        logger.warning("%s cannot be removed: %s", path, error.strerror)


def _refuse_shared(directory: Path) -> None:
    """Raises `PermissionError` for a place that serves others: open to them, and not ours or with folders in it (/tmp)."""
    status = directory.stat()
    if not status.st_mode & 0o077:
        return
    shared = status.st_mode & stat.S_ISVTX or any(each.is_dir() for each in directory.iterdir())
    if status.st_uid != os.geteuid() or shared:
        raise PermissionError(
            f"{directory} is open to other users, and conversations are kept in a folder of their own"
        )


class SlotStore:
    """Conversation caches in one directory, which engines are given as `--slot-save-path` and nobody else writes to.

    At most `max_bytes` are kept, none longer than `max_age_s`; the oldest go first. Nothing that goes wrong here is
    an error to anybody: the conversation is read anew.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int,
        max_age_s: float,
        min_tokens: int,
        limits: SlotLimits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._min_tokens = min_tokens
        self._limits = limits or SlotLimits()
        self._clock = clock
        self._restored: dict[str, tuple[str, int]] = {}

    def prepare(self) -> None:
        """Make the directory, and clear what a supervisor that died left in it. Before the first engine starts.

        What was said is for nobody else to read. Raises `PermissionError` for a directory that others can look into and
        that is not ours alone to close.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_shared(self.directory)
        # One that was there already may be open to others; what engines remember is nobody else's to read.
        self.directory.chmod(0o700)
        for marker in self._files("*.restoring"):
            self._drop(marker.stem, "its last restore did not end")
            _remove(marker)
        for part in (*self._files("*.part"), *self._files("*.json.new")):
            _remove(part)
        names = {name for name, _ in self._kept()}
        for orphan in self._files("*.kv"):
            if orphan.stem not in names:
                self._drop(orphan.stem, "nothing is known of it")
        self._make_room(0)

    async def save(self, address: EngineAddress, profile: Profile, facts: ModelFacts | None, key: str) -> SaveResult:
        """Keep what the idle slots hold. Before the engine is told to stop, after the last answer. Never raises."""
        self._restored.pop(profile.name, None)
        why = unsupported_reason(profile, facts) or self._off(key)
        if why:
            return SaveResult(why=why)
        try:
            slots = await request_json(address, "GET", "/slots", list[_Slot], timeout_s=self._limits.list_s)
        except EngineError as error:
            return SaveResult(why=str(error))
        saved = SaveResult()
        for slot in slots:
            # A slot that says no number was not used since the start: what it was given back then is still on disk.
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
        self._make_room(0)
        return saved

    async def restore(
        self, address: EngineAddress, profile: Profile, facts: ModelFacts | None, key: str
    ) -> RestoreResult:
        """Give a fresh engine back what it held, before the first request is let in. Never raises."""
        self._restored.pop(profile.name, None)
        why = unsupported_reason(profile, facts) or self._off(key)
        if why:
            return RestoreResult(why=why)
        self._make_room(0)
        restored = RestoreResult()
        mine = sorted((kept.slot, name, kept) for name, kept in self._kept() if kept.key == key)
        for slot, name, kept in mine:
            if slot >= (argument_number(profile.args, "-np", "--parallel") or profile.parallel):
                continue
            # The engine aborts when a single byte is missing.
            if self._size(name) != kept.n_written or kept.boot != _boot():
                self._drop(name, "it is not as it was written" if kept.boot == _boot() else "the machine was restarted")
                continue
            try:
                await self._restore_one(address, name, kept)
            except (EngineError, OSError) as error:
                logger.info("the conversation cache %s was not taken: %s", name, error)
                if isinstance(error, EngineError) and error.status is None:
                    return RestoreResult(slots=restored.slots, tokens=restored.tokens, crashed=True, why=str(error))
                continue
            restored = RestoreResult(slots=restored.slots + 1, tokens=restored.tokens + kept.n_saved)
            shortest = min(kept.n_saved, self._restored.get(profile.name, (key, kept.n_saved))[1])
            self._restored[profile.name] = (key, shortest)
        return restored

    def verify(self, model: str, cache_n: int, prompt_n: int | None = None) -> None:
        """The first answer after a restore: `cache_n` tokens of its prompt were there, `prompt_n` were read.

        A prompt that is as long as a restored conversation and found nothing of it is a strike; after `STRIKES` in a
        row, over restarts, this model is not saved any more until its file, build or arguments change.
        """
        key, shortest = self._restored.pop(model, ("", 0))
        if not key:
            return
        strikes = self._strikes(key)
        if cache_n > 0:
            if strikes:
                self._strike_file(key).unlink(missing_ok=True)
        elif prompt_n is None or prompt_n >= shortest:
            logger.warning("%s read a conversation anew that had been restored", model)
            try:
                self._write(self._strike_file(key), _Strikes(model=model, strikes=strikes + 1))
            except OSError as error:
                logger.warning("%s cannot be written to: %s", self.directory, error.strerror)
            if strikes + 1 >= STRIKES:
                for name, kept in list(self._kept()):
                    if kept.key == key:
                        self._drop(name, "restoring does not help this model")

    def total(self) -> int:
        """The bytes kept now."""
        return sum(self._size(name) or 0 for name, _ in self._kept())

    async def _save_one(
        self, address: EngineAddress, profile: Profile, facts: ModelFacts | None, key: str, slot: int, tokens: int
    ) -> SaveResult:
        expected = tokens * (facts.kv_bytes_per_token if facts else 0)
        # With a cache of smaller types it will be less; the true size is looked at afterwards.
        if expected // 4 > self._max_bytes or expected > self._free():
            why = f"slot {slot} of {profile.name} holds {tokens} tokens, too large to be kept"
            logger.info("%s", why)
            return SaveResult(why=why)
        self._make_room(min(expected, self._max_bytes))
        temporary = f"{key[:16]}-{slot}-{secrets.token_hex(4)}.part"
        part = self.directory / temporary
        try:
            path = f"/slots/{slot}?action=save"
            body = _FileName(filename=temporary)
            written = await request_json(address, "POST", path, _Written, body=body, timeout_s=self._limits.save_s)
            size = part.stat().st_size
            if size != written.n_written or written.n_saved <= 0:
                raise EngineError(f"it wrote {size} bytes and says {written.n_written}")
            if size > self._max_bytes:
                raise EngineError(f"{size} bytes are more than all that may be kept")
            name = _name(key, slot)
            kept = SlotRecord(
                key=key,
                model=profile.name,
                slot=slot,
                n_saved=written.n_saved,
                n_written=written.n_written,
                when=self._clock(),
                boot=_boot(),
            )
            # At no moment does a description lie beside a file that is not its own.
            self._sidecar(name).unlink(missing_ok=True)
            part.replace(self.directory / f"{name}.kv")
            self._write(self._sidecar(name), kept)
        except (EngineError, OSError) as error:
            why = f"slot {slot} of {profile.name} was not kept: {error}"
            logger.info("%s", why)
            return SaveResult(why=why)
        finally:
            part.unlink(missing_ok=True)
        return SaveResult(slots=1, tokens=written.n_saved, bytes=written.n_written)

    async def _restore_one(self, address: EngineAddress, name: str, kept: SlotRecord) -> None:
        """Raises `EngineError`. A file is gone unless the engine has said something to it: it may be what killed it."""
        marker = self.directory / f"{name}.restoring"
        marker.touch()
        answered = False
        try:
            path = f"/slots/{kept.slot}?action=restore"
            body = _FileName(filename=f"{name}.kv")
            read = await request_json(address, "POST", path, _Read, body=body, timeout_s=self._limits.restore_s)
            if read.n_restored != kept.n_saved:
                raise EngineError(f"{read.n_restored} of {kept.n_saved} tokens came back", 200)
            answered = True
        finally:
            # Also when cancelled: whoever watches the engine may see its end before we do.
            if not answered:
                self._drop(name, "its restore did not end well")
            # Only a supervisor that dies in here leaves the marker.
            marker.unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        """Drop what is too old, then the oldest until `wanted` more bytes may be kept."""
        now = self._clock()
        held: list[tuple[float, str, int]] = []
        for name, kept in list(self._kept()):
            size = self._size(name)
            if size is None:
                self._forget(name)
            elif now - kept.when > self._max_age_s:
                self._drop(name, "it is too old")
            else:
                held.append((kept.when, name, size))
        total = sum(size for _, _, size in held)
        for _when, name, size in sorted(held):
            if total + wanted <= self._max_bytes:
                break
            self._drop(name, "others need the room")
            total -= size

    def _files(self, pattern: str) -> list[Path]:
        """Only what we may have written ourselves: a folder of such a name is somebody else's."""
        return [path for path in self.directory.glob(pattern) if not path.is_dir()]

    def _kept(self) -> Iterator[tuple[str, SlotRecord]]:
        for sidecar in sorted(self.directory.glob("*.json")):
            try:
                kept = msgspec.json.decode(sidecar.read_bytes(), type=SlotRecord)
            except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._drop(sidecar.stem, "its description cannot be read")
                continue
            if sidecar.stem != _name(kept.key, kept.slot):
                self._drop(sidecar.stem, "its description is of another file")
                continue
            yield sidecar.stem, kept

    def _drop(self, name: str, why: str) -> None:
        logger.info("dropped the conversation cache %s: %s", name, why)
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

    def _off(self, key: str) -> str:
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

    def _write(self, path: Path, value: msgspec.Struct) -> None:
        """Whole or not at all."""
        fresh = path.with_name(path.name + ".new")
        fresh.write_bytes(msgspec.json.encode(value))
        fresh.replace(path)


def _name(key: str, slot: int) -> str:
    return f"{key[:16]}-{slot}"


def _boot() -> str:
    """Which start of the machine this is. What was written before a power cut may have its size and not its content."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


class Keeper:
    """What outlives an engine: the first two are called while it answers and nobody else uses it. Neither may fail."""

    async def restore(self, profile: Profile, address: EngineAddress, file: Path) -> None:
        """The engine is ready; nobody has been told yet."""

    async def save(self, profile: Profile, address: EngineAddress, file: Path) -> None:
        """The engine will be stopped next."""

    async def answered(self, profile: Profile, *, cached: int, prompt: int) -> None:
        """The first answer since then: `cached` of its `prompt` tokens need not be read."""


class SlotKeeper(Keeper):
    """Restores what a model's last engine knew, saves it before it goes, and remembers which file that engine has.

    `facts` reads a model file's header; it runs in a thread and may fail.
    """

    def __init__(self, store: SlotStore, facts: Callable[[Path], ModelFacts | None]) -> None:
        self._store = store
        self._facts = facts
        self._looked: dict[str, tuple[object, str, ModelFacts | None]] = {}
        self._known: dict[str, tuple[int, str, ModelFacts | None]] = {}

    async def restore(self, profile: Profile, address: EngineAddress, file: Path) -> None:
        """The engine is ready; nobody has been told yet. A failure means that conversations are read anew."""
        self._known.pop(profile.name, None)
        try:
            build = await engine_build(address)
            seen = (build, engine_profile(profile), signature(profile, file))
            if self._looked.get(profile.name, (None,))[0] != seen:
                self._looked[profile.name] = (seen, *await anyio.to_thread.run_sync(self._look, profile, file, build))
            _, key, facts = self._looked[profile.name]
        except (EngineError, GGUFError, OSError) as error:
            logger.info("conversations of %s are not kept: %s", profile.name, error)
            return
        self._known[profile.name] = (address.generation, key, facts)
        restored = await self._store.restore(address, profile, facts, key)
        if restored.slots:
            logger.info("%s has %d conversations back, %d tokens", profile.name, restored.slots, restored.tokens)

    async def save(self, profile: Profile, address: EngineAddress, file: Path) -> None:
        """The engine will be stopped next. What it was started with counts, not what the profile says by now."""
        generation, key, facts = self._known.pop(profile.name, (0, "", None))
        if generation != address.generation:
            return
        saved = await self._store.save(address, profile, facts, key)
        if saved.slots:
            logger.info("kept %d conversations of %s, %d bytes", saved.slots, profile.name, saved.bytes)

    async def answered(self, profile: Profile, *, cached: int, prompt: int) -> None:
        """What was given back must have helped; else it is not done for this model any more."""
        await anyio.to_thread.run_sync(self._store.verify, profile.name, cached, prompt)

    def _look(self, profile: Profile, file: Path, build: str) -> tuple[str, ModelFacts | None]:
        return slot_key(profile, file, build), self._facts(file)

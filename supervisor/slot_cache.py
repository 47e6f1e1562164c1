"""Saved slots: the states of conversations, which engines write before a stop and read after a start."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import anyio.to_thread
import msgspec

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.context_checkpoints import checkpoint_count, needs_checkpoints
from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.engine_client import EngineError
from hostler.supervisor.llama_arguments import argument_number
from hostler.supervisor.slot_files import COLD, SlotFiles, SlotRecord, boot_id, file_name, remove_file
from hostler.supervisor.slot_key import unsupported_reason
from hostler.supervisor.slot_requests import SlotLimits, WrittenSlot, list_slots, read_slot, write_slot
from hostler.supervisor.slot_rewind import read_tokens, rewind
from hostler.supervisor.slot_table import WORTH_SAVING, KeptConversation

#: After this many useless restores in a row a model's slots are no longer saved.
STRIKES: Final = 2

#: Slots of this many tokens have a checkpoint if the engine saves any.
CHECKPOINTED_TOKENS: Final = 256

#: After so many failures in a row slots of engines of a build are no longer taken back to their last prompts.
REWINDS: Final = 3

#: Why conversations with models of sliding windows are not kept by older engines.
NO_CHECKPOINTS: Final = "the engine saves no context checkpoints, without which a sliding window cannot be restored"

logger = logging.getLogger(__name__)


class SaveResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a save; `why` is the reason why nothing or less was saved, for the log and the status."""

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


class _Work(NamedTuple):
    address: EngineAddress
    profile: Profile
    facts: ModelFacts
    key: str
    build: str


class _NotSaved(Exception):
    """Why a slot was not saved; `further`: the engine may still save others."""

    def __init__(self, why: str, *, further: bool = True) -> None:
        super().__init__(why)
        self.further = further


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
        self.read_facts = read_facts
        self._files = SlotFiles(directory, max_bytes=max_bytes, max_age_s=max_age_s)
        self._min_tokens = min_tokens
        self._limits = limits or SlotLimits()
        self._clock = clock
        self._restored: dict[str, tuple[str, int]] = {}

    def prepare(self) -> None:
        """Create the directory and remove what a killed supervisor left in it. Call it before the first engine starts.

        Raises `PermissionError` for a directory that other users can read and that cannot be closed to them.
        """
        self._files.prepare(self._clock())

    def create_directory(self) -> None:
        """Create the directory if it was removed meanwhile: engines do not start without it. Blocks. Raises `OSError`."""
        self._files.create()

    def reason(self, profile: Profile, facts: ModelFacts | None, key: str, build: str = "") -> str:
        """Why conversations of this model are not kept by engines of this build; empty if they are. Blocks briefly."""
        if why := unsupported_reason(profile, facts):
            return why
        assert facts is not None
        if self._files.strikes(key) >= STRIKES:
            return "restoring did not help this model"
        if facts.sliding_window and self._files.saves_checkpoints(build, facts.architecture) is False:
            return NO_CHECKPOINTS
        return ""

    async def save(
        self,
        address: EngineAddress,
        profile: Profile,
        facts: ModelFacts | None,
        key: str,
        build: str = "",
        held: Callable[[int], KeptConversation | None] = lambda _: None,
    ) -> SaveResult:
        """Save the idle slots, after the last response and before the engine stops. Never raises.

        `held` returns the conversation in a slot, if it is known.
        """
        self._restored.pop(profile.name, None)
        if why := self.reason(profile, facts, key, build):
            return SaveResult(why=why)
        assert facts is not None
        try:
            slots = await list_slots(address, self._limits)
        except EngineError as error:
            return SaveResult(why=str(error))
        saved = SaveResult()
        for slot in slots:
            # What was restored into a slot that was not used is still on disk.
            if slot.is_processing or not slot.used:
                continue
            if slot.n_prompt_tokens is not None and slot.n_prompt_tokens < self._min_tokens:
                self._files.forget(file_name(key, slot.id))
                continue
            try:
                work = _Work(address, profile, facts, key, build)
                record = await self._save_one(work, slot.id, slot.n_prompt_tokens or 0, held(slot.id))
            except _NotSaved as error:
                logger.info("%s: slot %d was not saved: %s", profile.name, slot.id, error)
                saved = msgspec.structs.replace(saved, why=saved.why or str(error))
                if error.further:
                    continue
                break
            if record.n_saved < self._min_tokens:
                self._files.forget(file_name(key, slot.id))
                continue
            saved = msgspec.structs.replace(
                saved, slots=saved.slots + 1, tokens=saved.tokens + record.n_saved, bytes=saved.bytes + record.n_written
            )
        self._files.evict(0, self._clock())
        return saved

    async def restore(
        self, address: EngineAddress, profile: Profile, facts: ModelFacts | None, key: str, build: str = ""
    ) -> RestoreResult:
        """Restore the slots that fit `key` into a new engine, before its first request. Never raises."""
        self._restored.pop(profile.name, None)
        if why := self.reason(profile, facts, key, build):
            return RestoreResult(why=why)
        assert facts is not None
        self._files.evict(0, self._clock())
        restored = RestoreResult(why=self._restriction(facts, build))
        for name, record in self._files.of_key(key):
            if record.slot == COLD or record.slot >= (
                argument_number(profile.args, "-np", "--parallel") or profile.parallel
            ):
                continue
            if damage := self._files.damage(name, record) or _useless(facts, record):
                self._files.drop(name, damage)
                continue
            try:
                await self._restore_one(address, name, record, record.slot)
            except (EngineError, OSError) as error:
                logger.info("saved slot %s was not restored: %s", name, error)
                if isinstance(error, EngineError) and error.status is None:
                    return msgspec.structs.replace(restored, crashed=True, why=str(error))
                continue
            restored = msgspec.structs.replace(
                restored, slots=restored.slots + 1, tokens=restored.tokens + record.n_saved
            )
            shortest = min(record.n_saved, self._restored.get(profile.name, (key, record.n_saved))[1])
            self._restored[profile.name] = (key, shortest)
        return restored

    async def count_slots(self, address: EngineAddress) -> int:
        """How many slots the engine has; 0 if it does not list them. Never raises."""
        try:
            return len(await list_slots(address, self._limits))
        except EngineError:
            return 0

    async def save_conversation(
        self, address: EngineAddress, profile: Profile, facts: ModelFacts, key: str, build: str, slot: int,
        conversation: KeptConversation,
    ) -> bool:  # fmt: skip
        """Save an idle slot under its conversation's name, so that another one can use the slot. Never raises."""
        try:
            work = _Work(address, profile, facts, key, build)
            await self._save_one(work, slot, 0, conversation, cold=True)
        except _NotSaved as error:
            logger.info("%s: a conversation was not saved: %s", profile.name, error)
            return False
        self._files.evict(0, self._clock())
        return True

    async def load_conversation(
        self, address: EngineAddress, facts: ModelFacts, key: str, slot: int, name: str
    ) -> bool:
        """Load a saved conversation into an idle slot. Never raises; the engine reads the prompt again without it."""
        file = file_name(key, name)
        record = next((record for found, record in self._files.of_key(key) if found == file), None)
        if record is None:
            return False
        if damage := self._files.damage(file, record) or _useless(facts, record):
            self._files.drop(file, damage)
            return False
        try:
            await self._restore_one(address, file, record, slot)
        except (EngineError, OSError) as error:
            logger.info("saved conversation %s was not loaded: %s", file, error)
            return False
        return True

    def conversations(self, key: str) -> list[tuple[int, KeptConversation]]:
        """The conversations in files for engines of this key, the oldest first, with their slots or `COLD`. Blocks."""
        found = sorted((record for _, record in self._files.of_key(key)), key=lambda record: record.when)
        return [(record.slot, record.conversation) for record in found if record.conversation is not None]

    def record_first_response(self, model: str, cache_n: int, prompt_n: int | None = None) -> None:
        """Judge a restore by the first response after it: of its `prompt_n` prompt tokens `cache_n` were cached.

        A prompt as long as a restored conversation with nothing cached is a strike. After `STRIKES` in a row, restarts
        included, the model's slots are no longer saved until its file, build or arguments change. Blocks.
        """
        key, shortest = self._restored.pop(model, ("", 0))
        if not key:
            return
        strikes = self._files.strikes(key)
        if cache_n > 0:
            if strikes:
                self._files.set_strikes(key, model, 0)
        elif prompt_n is None or prompt_n >= shortest:
            logger.warning("%s: processed a restored conversation again", model)
            self._files.set_strikes(key, model, strikes + 1)
            if strikes + 1 >= STRIKES:
                for name, _ in self._files.of_key(key):
                    self._files.drop(name, "restoring does not help this model")

    def total(self) -> int:
        """The bytes on disk."""
        return self._files.total()

    def _restriction(self, facts: ModelFacts, build: str) -> str:
        """What is not kept although slots are saved; empty if everything is. Blocks briefly."""
        if facts.recurrent and self._files.saves_checkpoints(build, facts.architecture) is False:
            return "the engine saves no context checkpoints: the last answer is read again, or all if more has changed"
        return ""

    async def _save_one(
        self, work: _Work, slot: int, tokens: int, conversation: KeptConversation | None, *, cold: bool = False
    ) -> SlotRecord:
        """Save a slot, `cold` under its conversation's name. Raises `_NotSaved`."""
        address, profile, facts, key, build = work
        files = self._files
        name = file_name(key, conversation.name if cold and conversation is not None else slot)
        expected = max(tokens * facts.kv_bytes_per_token, files.size(name) or 0)
        # With smaller cache types it will be less; the real size is checked afterwards.
        if expected // 4 > files.max_bytes:
            raise _NotSaved(f"{tokens} tokens are too large to save")
        files.evict(min(expected, files.max_bytes), self._clock())
        try:
            files.create()  # it may have been removed
            room = files.free()
        except OSError as error:
            raise _NotSaved(f"{files.directory}: {error.strerror}") from error
        if expected > room:
            raise _NotSaved(f"the disk of {files.directory} has no room for {expected} bytes")
        part = files.directory / f"{name}-{secrets.token_hex(4)}.part"
        try:
            written = await self._write_slot(address, slot, part, expected)
            checkpoints = await self._count_checkpoints(part, facts, build, written.n_saved)
            if not checkpoints and self._may_rewind(work, written, conversation):
                written = await self._rewound(work, slot, part, written)
            record = SlotRecord(
                key=key, model=profile.name, slot=COLD if cold else slot, conversation=conversation, n_saved=written.n_saved, n_written=written.n_written,
                when=self._clock(), boot=boot_id(), checkpoints=checkpoints,
            )  # fmt: skip
            if useless := _useless(facts, record):
                raise _NotSaved(useless)
            files.add(part, record)
        except EngineError as error:
            raise _NotSaved(str(error), further=not error.timed_out) from error
        except OSError as error:
            raise _NotSaved(str(error)) from error
        finally:
            remove_file(part)
        return record

    async def _write_slot(self, address: EngineAddress, slot: int, part: Path, expected: int) -> WrittenSlot:
        """Have the engine write a slot to `part`. Raises `_NotSaved`, `EngineError`, `OSError`."""
        written = await write_slot(address, slot, part.name, self._limits, expected=expected)
        self._check_size(part, written)
        return written

    def _check_size(self, part: Path, written: WrittenSlot) -> None:
        size = part.stat().st_size
        if size != written.n_written or written.n_saved <= 0:
            raise _NotSaved(f"it wrote {size} bytes but reported {written.n_written}")
        if size > self._files.max_bytes:
            raise _NotSaved(f"{size} bytes exceed slots_max")

    def _may_rewind(self, work: _Work, written: WrittenSlot, conversation: KeptConversation | None) -> bool:
        """Whether a slot without checkpoints is to be taken back to its last prompt. Not if most of it is the answer."""
        facts = work.facts
        if not facts.recurrent or facts.sliding_window or written.n_saved <= CHECKPOINTED_TOKENS:
            return False
        if conversation is not None and conversation.size < WORTH_SAVING:
            return False
        if self._files.saves_checkpoints(work.build, facts.architecture):
            return False  # so this slot has none
        return self._files.failed_rewinds(work.build, facts.architecture) < REWINDS

    async def _rewound(self, work: _Work, slot: int, part: Path, written: WrittenSlot) -> WrittenSlot:
        """Save the slot once more after it was taken back to its last prompt: this engine could not do so after a restart.

        Leaves the file as it is if that fails, and remembers it.
        """
        again = part.with_name(f"{part.stem}-again.part")
        build, architecture = work.build, work.facts.architecture
        try:
            tokens = await anyio.to_thread.run_sync(read_tokens, part)
            if len(tokens) != written.n_saved:
                return written
            failed = self._files.failed_rewinds(build, architecture)
            # Counted before the request, so that a kill or a cancellation during it still counts as a failure.
            self._files.set_failed_rewinds(build, architecture, failed + 1)
            kept = await rewind(work.address, slot, tokens, timeout_s=self._limits.rewind_s)
            self._files.set_failed_rewinds(build, architecture, 0)
            if not kept:
                return written
            rewound = await self._write_slot(work.address, slot, again, written.n_written)
            if rewound.n_saved != kept:
                return written
            again.replace(part)
        except (EngineError, OSError, _NotSaved) as error:
            logger.info("%s: slot %d was saved as it is: %s", work.profile.name, slot, error)
            return written
        finally:
            remove_file(again)
        return rewound

    async def _count_checkpoints(self, part: Path, facts: ModelFacts, build: str, tokens: int) -> int:
        """The checkpoints in a file; shows, once for each build, whether engines save any. Raises `OSError`."""
        if not needs_checkpoints(facts):
            return 0
        count = await anyio.to_thread.run_sync(checkpoint_count, part)
        if count or tokens > max(CHECKPOINTED_TOKENS, facts.sliding_window):
            self._files.set_saves_checkpoints(build, facts.architecture, count > 0)
        return count

    async def _restore_one(self, address: EngineAddress, name: str, record: SlotRecord, slot: int) -> None:
        """Raises `EngineError`. Without a response the file is deleted: it may be what crashed the engine."""
        marker = self._files.directory / f"{name}.restoring"
        marker.touch()
        answered = False
        try:
            await read_slot(address, slot, f"{name}.kv", self._limits, tokens=record.n_saved, size=record.n_written)
            answered = True
        finally:
            # Also when cancelled: the process may have noticed the crash before this request does.
            if not answered:
                self._files.drop(name, "its restore failed")
            # Only a supervisor that is killed in here leaves the marker.
            remove_file(marker)


def _useless(facts: ModelFacts, record: SlotRecord) -> str:
    """Why the engine could not use the saved slot; empty if it can.

    Without checkpoints a recurrent memory can still be continued where it ends, but of a window only its end is left.
    """
    return NO_CHECKPOINTS if 0 < facts.sliding_window < record.n_saved and not record.checkpoints else ""

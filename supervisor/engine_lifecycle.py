"""The steps around one model's engine process: file and command before a start, saved slots and memory record at a stop."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio.to_thread
import msgspec

from hostler.profiles.engines import Engine
from hostler.profiles.gguf_header import GGUFError
from hostler.profiles.schema import ModelFacts, Profile
from hostler.profiles.sources import ReportProgress, source_of
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import (
    DeviceStatus,
    EngineAddress,
    Failure,
    FirstAnswer,
    KeptConversations,
    PromptIdentity,
    SlotAssignment,
    SupervisorError,
)
from hostler.supervisor.device_needs import device_needs
from hostler.supervisor.devices.visibility import visible_devices
from hostler.supervisor.engine_client import EngineError, engine_build
from hostler.supervisor.engine_command import (
    EngineCommand,
    build_command,
    cleanup_command,
    command_line,
    engine_of,
    engine_profile,
    is_embedded,
    program_of,
    reads_gguf,
)
from hostler.supervisor.engine_stop import AddLine, run_cleanup
from hostler.supervisor.llama_arguments import llama_arguments
from hostler.supervisor.llama_program import LlamaPrograms
from hostler.supervisor.memory import (
    MemoryHistory,
    MemoryNeed,
    MemoryUsage,
    PeakMemory,
    memory_need,
    update_peak,
)
from hostler.supervisor.model_files import FileDescription, ModelFiles
from hostler.supervisor.slot_assignment import EngineSlots
from hostler.supervisor.slot_cache import SlotCache
from hostler.supervisor.slot_key import clears_idle_slots, program_identity, signature, slot_key

#: Given a port and a key, the command that starts an engine.
CommandFactory = Callable[[int, str], EngineCommand]

logger = logging.getLogger(__name__)


async def _no_wait(model: str) -> None:
    pass


class EngineServices(msgspec.Struct, frozen=True, kw_only=True):
    """What the lifecycles of one host share. Engines listen on `host`; without `slots` no slots are saved.

    `devices` returns the GPUs as they are now; `wait_released` returns when they have room for a model, or free no memory.
    """

    settings: SupervisorSettings
    host: str
    files: ModelFiles
    memory: MemoryHistory
    slots: SlotCache | None = None
    devices: Callable[[], Sequence[DeviceStatus]] = tuple
    wait_released: Callable[[str], Awaitable[None]] = _no_wait
    programs: LlamaPrograms = msgspec.field(default_factory=LlamaPrograms)

    def device_sizes(self) -> dict[str, int]:
        """The GPUs that engines may use, with what models may take of each, in bytes; 0 if unknown.

        The configured ones, else all.
        """
        configured = self.settings.devices
        return {
            each.name: each.budget_bytes or each.total_bytes or 0
            for each in self.devices()
            if not configured or each.name in configured
        }


class _SlotIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Which saved slots fit an engine. Valid while `inputs` are the same."""

    inputs: object
    key: str
    build: str
    facts: ModelFacts | None


class EngineLifecycle:
    """Prepares, accompanies and remembers the engines of one model, one after the other.

    `path` is the model file once it is known to be on disk, `description` what is known of it, `disabled` why no engine
    could load it; both as `describe_file` last found. `conversations` is what the last engine kept of them.
    """

    def __init__(self, profile: Profile, services: EngineServices) -> None:
        self.profile = profile
        self.path: Path | None = None
        self.description = FileDescription()
        self._services = services
        self.disabled: Failure | None = None
        self.conversations: KeptConversations | None = None
        self._engine_slots: EngineSlots | None = None
        self._slot_identity: _SlotIdentity | None = None
        #: The generation whose slots may be saved: the last one that was offered its restore.
        self._slot_generation: int | None = None
        self._is_embedded = False
        self._peak: PeakMemory | None = None
        self._recalled_peak: PeakMemory | None = None

    # Before a start.

    async def fetch_file(self, report: ReportProgress = lambda _: None) -> Path | None:
        """The model file on disk, downloaded if necessary; `None` if the engine loads its model itself, or has none.

        Raises `SupervisorError`, also if no engine could load it.
        """
        if not source_of(self.profile.model).is_file:
            await self.check_file()
            return None
        try:
            path = await self._services.files.path(self.profile, report)
        except SupervisorError as error:
            await self.describe_file()
            raise error if self.disabled is None else SupervisorError(self.disabled) from error
        if self.disabled is not None:
            await self.check_file()
        self.path = path
        return path

    async def check_file(self) -> None:
        """Look at the file once more. Raises `SupervisorError` if no engine could load it."""
        await self.describe_file()
        if self.disabled is not None:
            raise SupervisorError(self.disabled)

    async def describe_file(self) -> None:
        """Update `description`, and recall how much memory an engine of that file took in the past."""
        before = self.disabled
        self.description = await self._services.files.describe(self.profile)
        failure = self.disabled = self._find_failure()
        if failure is not None and (before is None or before.message != failure.message):
            logger.error("%s: disabled, %s", self.profile.name, failure.message)
        elif failure is None and before is not None:
            logger.warning("%s: it can be used now", self.profile.name)
        self._recalled_peak = self._services.memory.get(self.profile.name, self._memory_key)

    def _find_failure(self) -> Failure | None:
        failure = self.description.failure
        try:
            engine = engine_of(self.profile, self._services.settings)
            if failure is not None and _concerns(failure, engine):
                return failure
            program = program_of(engine)
        except SupervisorError as error:
            return error.failure
        except ValueError as error:
            return Failure(kind="engine_missing", message=str(error))
        self._is_embedded = is_embedded(program)
        return None

    async def clean_up(self, log: AddLine) -> None:
        """Remove what an earlier engine may have left behind, such as a container."""
        inherited = dict(os.environ)
        try:
            command = cleanup_command(self.profile, self._services.settings, inherited)
        except ValueError:
            return  # reported when it is started
        if command:
            await run_cleanup(command, inherited, log)

    async def read_ahead(self, limit: int) -> None:
        """Load the model file into the page cache, if it is on disk and takes no more than `limit`."""
        if self.path is not None:
            await self._services.files.read_ahead(self.path, limit)

    def begin_read_ahead(self, limit: int) -> None:
        """`read_ahead` in the background."""
        if self.path is not None:
            self._services.files.begin_read_ahead(self.path, limit)

    async def prepare(self) -> CommandFactory:
        """Make the model file available, then return what builds the engine's command. Raises `SupervisorError`."""
        path = self.path if self.path is not None and self.path.exists() else await self.fetch_file()
        if self.profile.embeddings and self.description.facts is None:
            # The file may have just been downloaded, and its header decides about the pooling argument.
            await self.describe_file()
        profile, facts, services = self.profile, self.description.facts, self._services
        known, settings = await self._known_options(), await self._settings_with_slots()

        def command(port: int, key: str) -> EngineCommand:
            return build_command(
                profile, settings, file=path, host=services.host, port=port, key=key,
                inherited=dict(os.environ), facts=facts, known=known,
                visible=visible_devices(profile.devices, services.devices()),
            )  # fmt: skip

        return command

    async def _settings_with_slots(self) -> SupervisorSettings:
        """The settings; without a folder for slots if there is none and none can be created, since engines refuse to start."""
        settings, slots = self._services.settings, self._services.slots
        if slots is not None and settings.slots_dir is not None:
            try:
                await anyio.to_thread.run_sync(slots.create_directory)
            except OSError as error:
                logger.warning(
                    "%s: conversations are not kept: %s: %s", self.profile.name, settings.slots_dir, error.strerror
                )
                return msgspec.structs.replace(settings, slots_dir=None)
        return settings

    async def read_program(self) -> None:
        """Find out what the engine's program is, so that it can be shown before it is first started. Never raises."""
        try:
            await self._known_options()
        except (SupervisorError, ValueError):
            return  # reported with the file

    async def _known_options(self) -> frozenset[str] | None:
        """The options of this llama-server. What an old one lacks is logged once."""
        engine = engine_of(self.profile, self._services.settings)
        inherited = dict(os.environ)
        words = program_of(engine, path=inherited.get("PATH"))
        if not engine.llama_server or is_embedded(words):
            return None
        programs = self._services.programs
        program = await programs.read(words, inherited)
        if program.options is not None:
            _, lost = llama_arguments(
                self.profile, self._services.settings, file=Path(), host="", port=0, facts=self.description.facts,
                known=program.options,
            )  # fmt: skip
            for each in programs.newly_lost(words, lost):
                logger.warning("%s: %s is too old for %s", self.profile.name, words[0], each)
        return program.options

    @property
    def can_hold(self) -> bool:
        """Whether its engine can be started without loading the model yet."""
        return self._is_embedded

    async def wait_for_memory(self) -> None:
        """Wait until the GPUs have room for an engine, as long as memory is being freed."""
        await self._services.wait_released(self.profile.name)

    # Around an engine.

    async def restore_slots(self, address: EngineAddress) -> None:
        """Restore the slots of the model's last engine, before the first request. Never raises."""
        self._slot_generation = self._engine_slots = self.conversations = None
        slots = self._services.slots
        if slots is None or self.path is None or not engine_of(self.profile, self._services.settings).llama_server:
            return
        try:
            identity = await self._identify_slots(slots, self.path, address)
        except (EngineError, GGUFError, OSError, SupervisorError) as error:
            logger.info("%s: slots are not saved: %s", self.profile.name, error)
            self.conversations = KeptConversations(reason=str(error))
            return
        self._slot_generation = address.generation
        profile = self._slot_profile
        restored = await slots.restore(address, profile, identity.facts, identity.key, identity.build)
        self.conversations = KeptConversations(reason=restored.why, slots=restored.slots, tokens=restored.tokens)
        if identity.facts is not None and not restored.crashed:
            self._engine_slots = await self._open_slots(slots, address, identity, identity.facts)
        if restored.slots:
            logger.info("%s: restored %d slots, %d tokens", self.profile.name, restored.slots, restored.tokens)

    async def save_slots(self, address: EngineAddress) -> None:
        """Save the slots of an engine that stops next, under the identity that it was started with. Never raises."""
        generation, self._slot_generation = self._slot_generation, None
        engine_slots, self._engine_slots = self._engine_slots, None
        slots, identity = self._services.slots, self._slot_identity
        if slots is None or identity is None or self.path is None or generation != address.generation:
            return
        profile, facts = self._slot_profile, identity.facts
        if engine_slots is None:
            saved = await slots.save(address, profile, facts, identity.key, identity.build)
        else:
            saved = await slots.save(address, profile, facts, identity.key, identity.build, engine_slots.held)
        self.conversations = KeptConversations(reason=saved.why)
        if saved.slots:
            logger.info("%s: saved %d slots, %d bytes", self.profile.name, saved.slots, saved.bytes)

    async def record_first_response(self, *, cached: int, prompt: int) -> None:
        """Judge the last restore by the engine's first response: see `contract.Supervisor.report_first_response`."""
        if self.conversations is not None:
            answer = FirstAnswer(prompt=prompt, cached=cached)
            self.conversations = msgspec.structs.replace(self.conversations, first_answer=answer)
        if self._services.slots is not None:
            # A new conversation does not show whether the restored ones are of use.
            anew = self._engine_slots is not None and self._engine_slots.begins_anew is True
            await anyio.to_thread.run_sync(
                self._services.slots.record_first_response, self.profile.name, cached, 0 if anew else prompt
            )

    def assign_slot(self, generation: int, prompt: PromptIdentity) -> SlotAssignment | None:
        """See `contract.SupportsSlots`."""
        slots = self._engine_slots
        return slots.assign(prompt) if slots is not None and slots.address.generation == generation else None

    async def _open_slots(
        self, cache: SlotCache, address: EngineAddress, identity: _SlotIdentity, facts: ModelFacts
    ) -> EngineSlots | None:
        """The slots of an engine, if conversations may be moved between them."""
        profile = self._slot_profile
        if clears_idle_slots(profile):
            return None
        count = await cache.count_slots(address)

        def open_slots() -> EngineSlots | None:
            if not count or cache.reason(profile, facts, identity.key, identity.build):
                return None
            kept = cache.conversations(identity.key)
            return EngineSlots(
                cache, address, profile, facts, key=identity.key, build=identity.build, kept=kept, count=count
            )

        return await anyio.to_thread.run_sync(open_slots)

    @property
    def _slot_profile(self) -> Profile:
        """The profile with the command line and the variables of its llama-server, which matter as well."""
        engine, profile = engine_of(self.profile, self._services.settings), self.profile
        return msgspec.structs.replace(profile, engine=command_line(engine), env={**engine.env, **profile.env})

    async def _identify_slots(self, slots: SlotCache, path: Path, address: EngineAddress) -> _SlotIdentity:
        reported = await engine_build(address)
        profile = self._slot_profile

        def read() -> _SlotIdentity:
            build = f"{reported} {program_identity(profile.engine)}"
            inputs = (build, engine_profile(profile), signature(profile, path))
            known = self._slot_identity
            if known is not None and known.inputs == inputs:
                return known
            facts = slots.read_facts(path)
            key = slot_key(profile, path, build, facts)
            return _SlotIdentity(inputs=inputs, key=key, build=build, facts=facts)

        self._slot_identity = await anyio.to_thread.run_sync(read)
        return self._slot_identity

    # Memory.

    @property
    def memory_need(self) -> MemoryNeed:
        """The memory that an engine takes, or will take: declared, else estimated and corrected by measurements."""
        return memory_need(self.profile, self.description.facts, self.peak_memory, size=self.description.size)

    @property
    def sleeping_bytes(self) -> int | None:
        """How much memory of the machine its engine keeps while it sleeps; `None` if it cannot sleep."""
        try:
            rules = engine_of(self.profile, self._services.settings).sleep
        except ValueError:
            return None
        if rules is None:
            return None
        return (self.memory_need.weights or self.memory_need.total) if rules.keeps_weights else 0

    @property
    def device_needs(self) -> dict[str, int]:
        """How much of that is on which GPU, in bytes."""
        if self._is_embedded:  # it uses the CPU only
            return {}
        return device_needs(
            self.profile, self.memory_need, self.peak_memory, self.description.facts, self._services.device_sizes()
        )

    @property
    def peak_memory(self) -> PeakMemory | None:
        """The most that an engine took: in this process once that is conclusive, until then also in earlier ones."""
        own, recalled = self._peak, self._recalled_peak
        if own is None or recalled is None or own.settled:
            return own or recalled
        return update_peak(recalled, MemoryUsage(rss=own.rss, gpu=own.gpu, devices=own.devices))

    async def record_memory(self, usage: MemoryUsage, *, settled: bool) -> None:
        """Record one measurement; `settled` if the engine has answered since it was started."""
        self._peak = update_peak(self._peak, usage, settled=settled)
        peak = self.peak_memory
        if peak is not None and self._services.memory.record(self.profile.name, self._memory_key, peak):
            await anyio.to_thread.run_sync(self._services.memory.write)

    @property
    def _memory_key(self) -> str:
        """Equal for engines that are expected to take the same amount."""
        parts = (engine_profile(self.profile), self.description.size, self.description.modified_at)
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]

    # Configuration.

    def replace_profile(self, profile: Profile) -> None:
        """Apply a new profile of the same name."""
        if profile.model != self.profile.model:
            self.path = None
        if engine_profile(profile) != engine_profile(self.profile):
            self._peak = self._recalled_peak = None
        self.profile = profile


def _concerns(failure: Failure, engine: Engine) -> bool:
    """Whether what is wrong with a file keeps this engine from loading it. Other engines read other formats."""
    if not engine.llama_server:
        return failure.kind == "file_missing"
    return failure.kind != "not_gguf" or reads_gguf(engine)

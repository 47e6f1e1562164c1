"""What a fleet does with conversation caches when an engine comes and goes: the store's calls at the right moments."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread

from hostler.profiles.gguf_header import GGUFError
from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.engine_http import EngineError, engine_build
from hostler.supervisor.member import engine_of
from hostler.supervisor.slot_key import signature, slot_key
from hostler.supervisor.slots import SlotStore

logger = logging.getLogger(__name__)


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
            seen = (build, engine_of(profile), signature(profile, file))
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

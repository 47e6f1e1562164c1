"""An engine that sleeps instead of being stopped: its process stays, its memory on GPUs is free."""

from __future__ import annotations

import logging
from typing import Final

import anyio
import msgspec

from hostler.profiles.engines import SleepRules
from hostler.supervisor.child import FORCED_END
from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.engine_client import EngineError, request
from hostler.supervisor.engine_stop import AddLine, stop_engine
from hostler.supervisor.generation import Generation

#: How long an engine may take to fall asleep, in seconds: it copies its weights.
FALL_ASLEEP_S: Final = 60.0

logger = logging.getLogger(__name__)


class SleepingEngine:
    """The engine of a generation that has ended. `ended` is set when its process is gone, or a new generation has it."""

    def __init__(self, generation: Generation, rules: SleepRules) -> None:
        self.ended = anyio.Event()
        self.leaving = False
        self._generation = generation
        self._rules = rules

    @property
    def pid(self) -> int | None:
        child = self._generation.child
        return child.pid if child is not None and child.returncode is None else None

    async def wake(self, following: Generation, limit_s: float) -> EngineAddress | None:
        """Hand the process on to the following generation and wake it; `None` if it does not wake in time."""
        before = self._generation
        following.child, following.command, following.readiness = before.child, before.command, before.readiness
        self.ended.set()
        assert before.address is not None
        address = msgspec.structs.replace(before.address, generation=following.number)
        try:
            await request(address, "POST", self._rules.wake, timeout_s=limit_s)
        except EngineError as error:
            logger.warning("%s: its engine does not wake, and is started again: %s", address.model, error)
            return None
        return address

    def kill(self) -> None:
        """End the process at once."""
        if self._generation.child is not None:
            self._generation.child.signal(FORCED_END)

    async def end(self, grace_s: float, log: AddLine) -> None:
        """End the process."""
        child = self._generation.child
        assert child is not None
        try:
            if child.returncode is None:
                await stop_engine(self._generation, grace_s, log)
        finally:
            with anyio.CancelScope(shield=True):
                await child.end(0)
            self.ended.set()


async def fall_asleep(generation: Generation) -> SleepingEngine | None:
    """Have an idle engine sleep; `None` if it cannot."""
    address, command = generation.address, generation.command
    if address is None or command is None or command.engine.sleep is None:
        return None
    rules = command.engine.sleep
    try:
        await request(address, "POST", rules.path, timeout_s=FALL_ASLEEP_S)
    except EngineError as error:
        logger.warning("%s: its engine does not sleep, and is stopped: %s", address.model, error)
        return None
    return SleepingEngine(generation, rules)

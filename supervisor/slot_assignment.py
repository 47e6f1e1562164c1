"""Gives requests the slots of one engine, and moves conversations between slots and files for that."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import anyio

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.contract import EngineAddress, PromptIdentity
from hostler.supervisor.slot_cache import SlotCache
from hostler.supervisor.slot_files import COLD
from hostler.supervisor.slot_table import KeptConversation, SlotPlan, SlotTable

#: What moving conversations for one request may take at most, in seconds.
MOVING_S: Final = 60.0


class EngineSlots:
    """The `count` slots of one engine, from its start to its end. `key` and `build` as in `SlotCache.save`.

    `begins_anew`: the first request continues none of the conversations that were kept; `None` before it.
    """

    def __init__(
        self, cache: SlotCache, address: EngineAddress, profile: Profile, facts: ModelFacts, *, key: str, build: str,
        kept: list[tuple[int, KeptConversation]], count: int, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.address = address
        self.begins_anew: bool | None = None
        self._cache = cache
        self._profile = profile
        self._facts = facts
        self._key = key
        self._build = build
        self._clock = clock
        self._moving = anyio.Lock()
        self._table = SlotTable(count, saved=[each for slot, each in kept if slot == COLD])
        for slot, conversation in kept:
            if slot != COLD:
                self._table.restore(slot, conversation)

    def held(self, slot: int) -> KeptConversation | None:
        """The conversation in a slot."""
        return self._table.held(slot)

    def assign(self, prompt: PromptIdentity) -> AssignedSlot | None:
        """See `contract.SupportsSlots`."""
        plan = self._table.assign(prompt, self._clock())
        if plan is None:
            return None
        if self.begins_anew is None:
            self.begins_anew = not plan.continues
        return AssignedSlot(self, plan)

    async def carry_out(self, plan: SlotPlan) -> None:
        """Move the conversations of a plan, one plan after the other. Never raises."""
        with anyio.move_on_after(MOVING_S):
            async with self._moving:
                for slot, conversation in plan.save:
                    saved = await self._cache.save_conversation(
                        self.address, self._profile, self._facts, self._key, self._build, slot, conversation
                    )
                    if not saved:
                        self._table.forget_saved(conversation.name)
                if plan.load and not await self._cache.load_conversation(
                    self.address, self._facts, self._key, plan.slot, plan.load
                ):
                    self._table.forget_saved(plan.load)

    def release(self, slot: int) -> None:
        """The request in this slot has ended."""
        self._table.release(slot, self._clock())


class AssignedSlot:
    """See `contract.SlotAssignment`."""

    def __init__(self, slots: EngineSlots, plan: SlotPlan) -> None:
        self.slot = plan.slot
        self.prepared = not plan.save and not plan.load
        self._slots = slots
        self._plan = plan
        self._released = False

    async def prepare(self) -> None:
        """See `contract.SlotAssignment`."""
        await self._slots.carry_out(self._plan)
        self.prepared = True

    def release(self) -> None:
        """See `contract.SlotAssignment`."""
        if not self._released:
            self._released = True
            self._slots.release(self.slot)

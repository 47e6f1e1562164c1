"""Which models sleep instead of being stopped, and which of those that sleep have to end: as their memory allows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from hostler.supervisor.model import ManagedModel
from hostler.supervisor.placement import PlacementPolicy


class SleepingModels:
    """The models of a host whose engines sleep. Sleeping engines count against the memory budget with what they keep in RAM;
    those used least recently end first. `free_memory` returns the bytes available."""

    def __init__(
        self, policy: PlacementPolicy, models: Callable[[], Iterable[ManagedModel]], free_memory: Callable[[], int]
    ) -> None:
        self._policy = policy
        self._models = models
        self._free_memory = free_memory

    def may_sleep(self, wanted: ManagedModel, victims: Sequence[ManagedModel] = ()) -> set[str]:
        """Which of `victims`, and of the models that sleep already, may sleep while `wanted` runs."""
        asleep = [model for model in self._models() if model is not wanted and model.process.asleep]
        left = self._left(wanted, {victim.name for victim in victims}, asleep)
        chosen: set[str] = set()
        for model in sorted([*victims, *asleep], key=lambda each: each.idle_since, reverse=True):
            size = model.lifecycle.sleeping_bytes
            if size is not None and size <= left:
                left -= size
                chosen.add(model.name)
        return chosen

    def asleep_besides(self, wanted: ManagedModel, chosen: Collection[str]) -> list[ManagedModel]:
        """The models that sleep and are not among those that may."""
        return [
            model for model in self._models()
            if model is not wanted and model.process.asleep and model.name not in chosen
        ]  # fmt: skip

    def _left(self, wanted: ManagedModel, leaving: Collection[str], asleep: Sequence[ManagedModel]) -> int:
        """The memory that is left for sleeping models beside `wanted` and everything that stays, in bytes."""
        need = wanted.lifecycle.memory_need.total
        in_ram = max(0, need - sum(wanted.lifecycle.device_needs.values()))
        # What these hold already is not free, and is theirs.
        held = sum(model.usage.rss for model in (wanted, *asleep))
        left = self._free_memory() + held - in_ram
        budget = self._policy.capacity.budget_bytes
        if budget is None:
            return left
        others = [model for model in self._models() if model is not wanted and model.process.alive]
        taken = need + sum(model.lifecycle.memory_need.total for model in others if model.name not in leaving)
        return min(left, budget - taken)

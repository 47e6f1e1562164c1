"""Which models of a host have to stop for another one."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import DeviceStatus, Failure, SupervisorError
from hostler.supervisor.memory import does_not_fit
from hostler.supervisor.model import ManagedModel
from hostler.supervisor.scheduling.eviction import (
    HostCapacity,
    ModelFootprint,
    leases_in_the_way,
    models_to_evict,
    with_devices,
)


class PlacementPolicy:
    """Which models of a host may run together. `capacity` is replaced after each reading of the GPUs."""

    def __init__(self, capacity: HostCapacity) -> None:
        self.capacity = capacity

    @property
    def needs_sizes(self) -> bool:
        """Whether it matters how much memory a model takes."""
        return any(True for _ in self.capacity.budgets())

    def victims(
        self, wanted: ManagedModel, others: Sequence[ManagedModel], evict: Collection[str]
    ) -> list[ManagedModel]:
        """Which of `others`, all alive, have to stop before `wanted` starts.

        Those in `evict` (the scheduler has drained them); besides them idle ones, least recently used first, and busy
        ones if that is not enough; pinned and leased ones never. Raises `SupervisorError` if `wanted` cannot fit even then.
        """
        names = {other.name for other in others if other.name in evict}
        rest = [other for other in others if other.name not in names]
        capacity = self.capacity
        if wanted.process.staying:
            # What it takes, it has already.
            capacity = msgspec.structs.replace(capacity, budget_bytes=None, devices={})
        footprint = footprint_of(wanted)
        # Models that are stopping hold their memory until they are gone, which is waited for only if it is needed.
        stopping = [other for other in rest if not other.process.staying]
        staying = [footprint_of(other) for other in rest if other.process.staying]
        chosen = models_to_evict(footprint, staying, capacity)
        if chosen is None:
            raise SupervisorError(self._failure(wanted, footprint, staying))
        left = [each for each in staying if each.model not in chosen]
        if models_to_evict(footprint, [*left, *map(footprint_of, stopping)], capacity) != frozenset():
            names |= {other.name for other in stopping}
        names |= chosen
        return [other for other in others if other.name in names]

    def must_evict(self, wanted: ManagedModel, others: Sequence[ManagedModel], evict: Collection[str]) -> bool:
        """Whether a model has to stop although `wanted` is ready."""
        staying = [other for other in others if other.process.staying]
        if any(other.name in evict for other in staying):
            return True
        return bool(staying) and bool(self.victims(wanted, staying, ()))

    def _failure(self, wanted: ManagedModel, footprint: ModelFootprint, loaded: Sequence[ModelFootprint]) -> Failure:
        """Why it does not fit, judged by the first budget that is too small."""
        if leased := leases_in_the_way(footprint, loaded, self.capacity):
            names = " and ".join(sorted(leased))
            message = f"{wanted.name} would have to take the place of {names}, which is leased (`hostler lease --list`)"
            return Failure(kind="cancelled", message=message)
        need = wanted.lifecycle.memory_need
        pinned = [other for other in loaded if other.pinned]
        for device, capacity in self.capacity.budgets():
            size = footprint.bytes_of(device)
            held = [other for other in pinned if other.bytes_of(device)]
            if size + sum(other.bytes_of(device) for other in held) > capacity:
                beside = [other.model for other in held] if size <= capacity else []
                part = msgspec.structs.replace(need, total=size) if device else need
                return does_not_fit(wanted.profile, part, capacity, beside=beside, device=device)
        return does_not_fit(
            wanted.profile, need, self.capacity.budget_bytes or 0, beside=[each.model for each in pinned]
        )


def footprint_of(model: ManagedModel) -> ModelFootprint:
    """What a model takes, or would take."""
    return ModelFootprint(
        model=model.name, memory_bytes=model.lifecycle.memory_need.total, device_bytes=model.lifecycle.device_needs,
        pinned=model.pinned, leased=model.leased, activity="busy" if model.busy else "idle", used_at=model.idle_since,
        evict_cost=model.evict_cost,
    )  # fmt: skip


def capacity_of(settings: SupervisorSettings, devices: tuple[DeviceStatus, ...]) -> HostCapacity:
    """Which models may run together now. One at a time, unless the settings allow more."""
    shared = settings.memory_budget is not None or settings.devices or settings.groups or settings.sets
    capacity = HostCapacity(
        exclusive=not shared if settings.exclusive is None else settings.exclusive,
        budget_bytes=None if settings.memory_budget is None else int(settings.memory_budget),
        groups=tuple(map(frozenset, settings.groups.values())), sets=tuple(map(frozenset, settings.sets)),
    )  # fmt: skip
    return with_devices(capacity, devices)

"""Which models must stop before another one can load."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Literal

import msgspec

from hostler.supervisor.contract import DeviceStatus, HostStatus

Activity = Literal["idle", "busy", "moving"]

_ACTIVITIES: tuple[Activity, ...] = ("idle", "busy", "moving")

# Above this many candidates the smallest sufficient set is not searched for: there would be thousands of subsets.
_SEARCHED = 12

#: A budget: the name of a device, or "" for the whole host.
_Budget = str
_HOST: _Budget = ""


class HostCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """Which models a host holds together. What is empty or `None` limits nothing.

    With `exclusive` one at a time. All together take `budget_bytes` at most, and so much of each of `devices`. Of each of
    `groups` one model at a time. With `sets`, those loaded are part of one of them; a model of no set runs alone. Idle
    models leave the devices of `yielding`.
    """

    exclusive: bool = True
    budget_bytes: int | None = None
    devices: Mapping[str, int] = {}
    groups: tuple[frozenset[str], ...] = ()
    sets: tuple[frozenset[str], ...] = ()
    yielding: frozenset[str] = frozenset()

    @property
    def unlimited(self) -> bool:
        """Whether all models may be loaded together."""
        limited = self.exclusive or self.budget_bytes is not None or self.devices or self.groups or self.sets
        return not limited

    def budgets(self) -> Iterator[tuple[_Budget, int]]:
        """Each budget in bytes."""
        if self.budget_bytes is not None:
            yield _HOST, self.budget_bytes
        yield from self.devices.items()


def capacity_of(status: HostStatus) -> HostCapacity:
    """The capacity that a host publishes."""
    capacity = HostCapacity(
        exclusive=status.exclusive,
        budget_bytes=status.budget_bytes,
        groups=tuple(map(frozenset, status.groups)),
        sets=tuple(map(frozenset, status.sets)),
    )
    return with_devices(capacity, status.devices)


def with_devices(capacity: HostCapacity, devices: Iterable[DeviceStatus]) -> HostCapacity:
    """The capacity after a reading of the host's devices."""
    devices = list(devices)
    return msgspec.structs.replace(
        capacity,
        devices={each.name: each.capacity_bytes for each in devices if each.capacity_bytes is not None},
        yielding=frozenset(each.name for each in devices if each.yielding),
    )


class ModelFootprint(msgspec.Struct, frozen=True, kw_only=True):
    """The memory that a model occupies, or would occupy, and what unloading it costs. `moving` models are starting or
    stopping, `leased` ones are not evicted."""

    model: str
    memory_bytes: int = 0
    device_bytes: Mapping[str, int] = {}
    pinned: bool = False
    leased: bool = False
    activity: Activity = "idle"
    used_at: float = 0.0
    evict_cost: float = 0.0

    def bytes_of(self, budget: _Budget) -> int:
        """What counts against a budget."""
        return self.device_bytes.get(budget, 0) if budget else self.memory_bytes


def models_to_evict(
    wanted: ModelFootprint, loaded: Iterable[ModelFootprint], capacity: HostCapacity
) -> frozenset[str] | None:
    """The models that must stop before `wanted` can load; `None` if it can never fit.

    Pinned models stay, and others run beside them whatever groups and sets say. Leased ones stay, and what may not run
    beside them cannot load. For memory, idle models go before busy ones and those before moving ones, then as few as
    possible, then the least recently used. Of several sets the one is chosen that costs the least, likewise idle models
    first.
    """
    others = {footprint.model: footprint for footprint in loaded if footprint.model != wanted.model}
    best: frozenset[str] | None = None
    for allowed in _allowed_sets(wanted, capacity):
        names = _beside(wanted, others, allowed, capacity)
        if names is not None and (best is None or _cost(names, others) < _cost(best, others)):
            best = names
    return best


def leases_in_the_way(
    wanted: ModelFootprint, loaded: Collection[ModelFootprint], capacity: HostCapacity
) -> frozenset[str]:
    """The leased models but for whose leases `wanted` could load; empty if it could not load even then."""
    others = [msgspec.structs.replace(each, leased=False) for each in loaded]
    leased = frozenset(each.model for each in loaded if each.leased)
    return leased & (models_to_evict(wanted, others, capacity) or frozenset())


def models_to_yield(loaded: Iterable[ModelFootprint], capacity: HostCapacity) -> str | None:
    """The model that leaves next because other programs need memory of its device: the least recently used idle one."""
    idle = [
        footprint
        for footprint in loaded
        if footprint.activity == "idle"
        and not footprint.pinned
        and not footprint.leased
        and capacity.yielding.intersection(footprint.device_bytes)
    ]
    return min(idle, key=lambda footprint: footprint.used_at).model if idle else None


def _allowed_sets(wanted: ModelFootprint, capacity: HostCapacity) -> Sequence[frozenset[str] | None]:
    """The sets that contain the model; `None` stands for any."""
    if not capacity.sets or wanted.pinned:
        return (None,)
    return [names for names in capacity.sets if wanted.model in names] or [frozenset({wanted.model})]


def _cost(names: frozenset[str], others: Mapping[str, ModelFootprint]) -> tuple[int, float, int]:
    activity = max((_ACTIVITIES.index(others[name].activity) for name in names), default=-1)
    return activity, sum(others[name].evict_cost for name in names), len(names)


def _beside(
    wanted: ModelFootprint, others: Mapping[str, ModelFootprint], allowed: frozenset[str] | None, capacity: HostCapacity
) -> frozenset[str] | None:
    """`models_to_evict` if only the models of one set may run beside it."""
    excluded = frozenset(
        name
        for name, other in others.items()
        if not (wanted.pinned or other.pinned)
        and (
            capacity.exclusive
            or (allowed is not None and name not in allowed)
            or any(name in group and wanted.model in group for group in capacity.groups)
        )
    )
    if any(others[name].leased for name in excluded):
        return None
    rest = [other for name, other in others.items() if name not in excluded]
    excess: dict[_Budget, int] = {}
    for budget, limit in capacity.budgets():
        need = wanted.bytes_of(budget)
        over = sum(other.bytes_of(budget) for other in rest) + need - limit
        # A model that takes nothing of a device does not mind that others have too much of it.
        if over > 0 and (need or budget == _HOST):
            excess[budget] = over
    freeing = _freeing(rest, excess)
    return None if freeing is None else excluded | freeing


def _freeing(models: Sequence[ModelFootprint], excess: Mapping[_Budget, int]) -> frozenset[str] | None:
    """Which models to evict so that each budget loses its excess; `None` if that is not enough."""
    if not excess:
        return frozenset()
    pool: list[ModelFootprint] = []
    for activity in _ACTIVITIES:
        pool += sorted(
            (
                model
                for model in models
                if model.activity == activity
                and not (model.pinned or model.leased)
                and any(map(model.bytes_of, excess))
            ),
            key=lambda model: model.used_at,
        )
        if _suffices(pool, excess):
            return _fewest(pool, excess)
    return None


def _suffices(models: Iterable[ModelFootprint], excess: Mapping[_Budget, int]) -> bool:
    chosen = list(models)
    return all(sum(model.bytes_of(budget) for model in chosen) >= over for budget, over in excess.items())


def _fewest(pool: Sequence[ModelFootprint], excess: Mapping[_Budget, int]) -> frozenset[str]:
    if len(pool) > _SEARCHED:
        pool = _largest(pool, excess)
        candidates: Iterable[Sequence[ModelFootprint]] = (pool[:size] for size in range(1, len(pool) + 1))
    else:
        # Combinations keep the order of the pool, so the first sufficient one is the least recently used.
        candidates = (chosen for size in range(1, len(pool) + 1) for chosen in combinations(pool, size))
    chosen = next(chosen for chosen in candidates if _suffices(chosen, excess))
    return frozenset(model.model for model in _without_needless(chosen, excess))


def _largest(pool: Sequence[ModelFootprint], excess: Mapping[_Budget, int]) -> Sequence[ModelFootprint]:
    """Ordered by what each contributes to what is missing, the most first."""
    return sorted(
        pool, key=lambda model: -sum(min(model.bytes_of(budget), over) / over for budget, over in excess.items())
    )


def _without_needless(chosen: Sequence[ModelFootprint], excess: Mapping[_Budget, int]) -> Sequence[ModelFootprint]:
    needed = list(chosen)
    for model in chosen:
        rest = [other for other in needed if other is not model]
        if rest and _suffices(rest, excess):
            needed = rest
    return needed

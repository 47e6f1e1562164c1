"""Which models must stop before another one can load."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import combinations
from typing import Literal

import msgspec

Activity = Literal["idle", "busy", "moving"]

# Above this many candidates the smallest sufficient set is not searched for: there would be thousands of subsets.
_SEARCHED = 12


class HostCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """How many models a host holds: one at a time, or as many as fit into `budget_bytes` (`None`: unlimited)."""

    exclusive: bool = True
    budget_bytes: int | None = None


class ModelFootprint(msgspec.Struct, frozen=True, kw_only=True):
    """The memory that a model occupies, or would occupy. `moving` models are starting or stopping."""

    model: str
    memory_bytes: int = 0
    pinned: bool = False
    activity: Activity = "idle"
    used_at: float = 0.0


def models_to_evict(
    wanted: ModelFootprint, loaded: Iterable[ModelFootprint], capacity: HostCapacity
) -> frozenset[str] | None:
    """The models that must stop before `wanted` can load; `None` if it can never fit.

    Pinned models stay; on an exclusive host they run beside the one other model. Idle models go before busy ones and
    those before moving ones, then as few as possible, then the least recently used.
    """
    others = [footprint for footprint in loaded if footprint.model != wanted.model]
    if capacity.exclusive:
        return frozenset() if wanted.pinned else frozenset(other.model for other in others if not other.pinned)
    if capacity.budget_bytes is None:
        return frozenset()
    excess = sum(other.memory_bytes for other in others) + wanted.memory_bytes - capacity.budget_bytes
    if excess <= 0:
        return frozenset()
    pool: list[ModelFootprint] = []
    for activity in ("idle", "busy", "moving"):
        pool += sorted(
            (other for other in others if other.activity == activity and not other.pinned),
            key=lambda other: other.used_at,
        )
        if sum(other.memory_bytes for other in pool) >= excess:
            return _fewest(pool, excess)
    return None


def _fewest(pool: Collection[ModelFootprint], excess: int) -> frozenset[str]:
    if len(pool) > _SEARCHED:
        pool = sorted(pool, key=lambda footprint: -footprint.memory_bytes)
    for size in range(1, len(pool) + 1):
        # Combinations keep the order of the pool, so the first sufficient one is the least recently used.
        candidates = combinations(pool, size) if len(pool) <= _SEARCHED else iter([tuple(pool)[:size]])
        for chosen in candidates:
            if sum(footprint.memory_bytes for footprint in chosen) >= excess:
                return frozenset(footprint.model for footprint in chosen)
    raise AssertionError("the caller made sure that the whole pool suffices")

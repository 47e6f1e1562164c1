"""Which loaded models must go to make room for another one. Decides nothing about when."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import combinations
from typing import Literal

import msgspec

Use = Literal["idle", "busy", "moving"]

# Above this many candidates the smallest set is no longer searched for: subsets would be thousands.
_SEARCHED = 12


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """The rule of a host: one model at a time, or as many as share a memory budget (`None`: no limit)."""

    exclusive: bool = True
    budget_bytes: int | None = None


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """A model that takes room, or wants to. `moving` ones are being started or stopped: they go last."""

    model: str
    memory_bytes: int = 0
    pinned: bool = False
    use: Use = "idle"
    used_at: float = 0.0


def evict(wanted: Resident, live: Iterable[Resident], room: Room) -> frozenset[str] | None:
    """The models that must go before `wanted` can be loaded; `None` if it can never fit.

    Pinned models stay, and on an exclusive host they live beside the one. Idle models go before busy ones, then as few
    as possible, then those that were used longest ago.
    """
    others = [resident for resident in live if resident.model != wanted.model]
    if room.exclusive:
        return frozenset() if wanted.pinned else frozenset(other.model for other in others if not other.pinned)
    if room.budget_bytes is None:
        return frozenset()
    excess = sum(other.memory_bytes for other in others) + wanted.memory_bytes - room.budget_bytes
    if excess <= 0:
        return frozenset()
    pool: list[Resident] = []
    for use in ("idle", "busy", "moving"):
        pool += sorted(
            (other for other in others if other.use == use and not other.pinned), key=lambda other: other.used_at
        )
        if sum(other.memory_bytes for other in pool) >= excess:
            return _fewest(pool, excess)
    return None


def _fewest(pool: Collection[Resident], excess: int) -> frozenset[str]:
    if len(pool) > _SEARCHED:
        pool = sorted(pool, key=lambda resident: -resident.memory_bytes)
    for size in range(1, len(pool) + 1):
        # Combinations come in the order of the pool, so the first that suffices is the longest unused one.
        candidates = combinations(pool, size) if len(pool) <= _SEARCHED else iter([tuple(pool)[:size]])
        for chosen in candidates:
            if sum(resident.memory_bytes for resident in chosen) >= excess:
                return frozenset(resident.model for resident in chosen)
    raise AssertionError("the caller made sure that the whole pool suffices")

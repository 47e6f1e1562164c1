"""What the scheduler knows of one model of its host, and how that changes when its process does."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from itertools import combinations
from typing import Literal

import msgspec

from hostler.gateway.scheduling.queue import Line, Waiter
from hostler.supervisor.contract import Failure, ProfileInfo

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


ModelPhase = Literal["cold", "loading", "ready", "stopping"]

# What a load and an answer are taken to last before any was seen, in seconds.
_LOAD_S, _SERVICE_S = 10.0, 5.0


class Model(msgspec.Struct, eq=False):
    """One model, owned by the scheduler. `process` counts its processes: leases of an old one count no more.

    `gate`: tickets that rank behind it do not get in, since it waited long enough for the room that this model takes.
    `batch`: how many of those who waited when the model became ready are in line yet; they are served together.
    `leaving`: somebody asked for it to be stopped, and answers are still running. `since`: when its phase began.
    """

    name: str
    line: Line
    known: bool = True
    default_parallel: int = 1
    parallel: int = 1
    ttl_s: float | None = None
    pinned: bool = False
    memory_bytes: int = 0
    phase: ModelPhase = "cold"
    process: int = 0
    running: int = 0
    switch: int | None = None
    since: float = 0.0
    used_at: float = 0.0
    idle_until: float | None = None
    gate: Waiter | None = None
    batch: int = 0
    leaving: bool = False
    seen_load_s: float | None = None
    seen_service_s: float | None = None
    failure: Failure | None = None
    failed_until: float = -math.inf

    @property
    def load_s(self) -> float:
        """How long a load takes, from what was seen."""
        return _LOAD_S if self.seen_load_s is None else self.seen_load_s

    @property
    def service_s(self) -> float:
        """How long an answer takes, from what was seen."""
        return _SERVICE_S if self.seen_service_s is None else self.seen_service_s

    def learn_load(self, seconds: float) -> None:
        """A load took so long."""
        self.seen_load_s = seconds if self.seen_load_s is None else 0.5 * self.seen_load_s + 0.5 * seconds

    def learn_service(self, seconds: float) -> None:
        """An answer took so long."""
        self.seen_service_s = seconds if self.seen_service_s is None else 0.8 * self.seen_service_s + 0.2 * seconds

    def learn_profile(self, profile: ProfileInfo, now: float) -> None:
        """The profile as it is now. A process that runs keeps the slots that it was started with.

        The idle time ends when the model is pinned, and begins when it is pinned no more.
        """
        before = self.pinned
        self.default_parallel = max(1, profile.parallel)
        self.ttl_s, self.pinned, self.memory_bytes = profile.ttl_s, profile.pinned, profile.memory_bytes
        if self.phase != "ready":
            self.parallel = self.default_parallel
        if self.seen_load_s is None:
            self.seen_load_s = profile.load_s
        if self.pinned is not before and self.phase == "ready" and not self.running:
            self.use(now)

    def use(self, now: float, keep_alive_s: float | None = None) -> None:
        """It is idle from now on: the idle time begins (or another one, if the last request named it)."""
        keep_s = self.ttl_s if keep_alive_s is None else keep_alive_s
        self.used_at = now
        self.idle_until = None if keep_s is None or self.pinned or keep_s == math.inf else now + keep_s

    def become_ready(self, now: float, parallel: int) -> None:
        """A process answers; everybody in line is its batch."""
        self.phase, self.switch, self.since = "ready", None, now
        self.parallel = parallel or self.default_parallel
        self.leaving, self.gate, self.batch = False, None, len(self.line)
        self.failure, self.failed_until = None, -math.inf
        self.use(now)

    def become_cold(self) -> None:
        """There is no process; leases of the last one are of no account any more."""
        if self.phase != "cold":
            self.process += 1
        self.phase, self.switch, self.running, self.idle_until = "cold", None, 0, None
        self.leaving, self.gate, self.batch = False, None, 0

    def become_stopping(self) -> None:
        """Its process ends; it takes room until then."""
        self.become_cold()
        self.phase = "stopping"

    def become_loading(self, now: float, switch: int | None) -> None:
        """A process starts: by our order `switch`, or by somebody else's."""
        self.become_cold()
        self.phase, self.switch, self.since = "loading", switch, now

    def resident(self, use: Use | None = None) -> Resident:
        """The model as somebody who takes room, or wants to."""
        if use is None:
            moving, busy = self.phase in ("loading", "stopping"), self.running or self.line
            use = "moving" if moving else "busy" if busy else "idle"
        # Busy ones by the time they became ready: by last use, two of them would be drained in turns, neither ever empty.
        return Resident(
            model=self.name,
            memory_bytes=self.memory_bytes,
            pinned=self.pinned,
            use=use,
            used_at=self.since if use == "busy" else self.used_at,
        )

"""What the scheduler knows of one model of its host, and how that changes when its process does."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from hostler.gateway.switching.eviction import Resident, Use
from hostler.gateway.switching.waiting import Line, Waiter
from hostler.supervisor.contract import Failure, ProfileInfo

Phase = Literal["cold", "loading", "ready", "stopping"]

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
    phase: Phase = "cold"
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

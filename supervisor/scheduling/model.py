"""The scheduler's state of one model, and how it changes with the model's process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import msgspec

from hostler.supervisor.contract import Failure, ModelLease, ModelStatus, ProfileInfo
from hostler.supervisor.scheduling.admission import AdmissionControl
from hostler.supervisor.scheduling.eviction import Activity, ModelFootprint
from hostler.supervisor.scheduling.queue import ModelQueue, QueueEntry
from hostler.supervisor.scheduling.speed import ModelSpeed

ModelPhase = Literal["cold", "loading", "ready", "stopping"]

# Estimates for a load and an answer until one was measured, in seconds.
_LOAD_S, _SERVICE_S = 10.0, 5.0


class ScheduledModel(msgspec.Struct, eq=False):
    """The state of one model, owned by the scheduler. Times in seconds.

    `generation` counts the model's processes: leases of an earlier one no longer count. `barrier`: entries that rank
    behind it are not admitted, since it has waited out its patience for the memory that this model occupies. `batch`:
    how many of the entries queued when the model became ready are still queued; a batch is served together.
    `unloading`: an unload was requested and answers are still running. `since` is when the phase began. `displaced`: it
    was evicted for another model and has not been loaded since. `admission` bounds its queue if its profile does.
    `loads` are the beginnings and ends of loads that queued entries have waited for. `ready_at` is when the load under way
    will end, by the supervisor's own estimate, `overdue` that it takes longer than usual. `serving_since` is when the oldest
    running answer began, as of the last estimate. `model_lease` keeps it loaded; `lease_void`: its last load failed,
    so that its lease takes no memory from others until it is ready.
    """

    name: str
    queue: ModelQueue
    known: bool = True
    default_parallel: int = 1
    engine_parallel: int = 1
    parallel: int = 1
    ttl_s: float | None = None
    pinned: bool = False
    model_lease: ModelLease | None = None
    lease_void: bool = False
    default: bool = False
    memory_bytes: int = 0
    device_bytes: Mapping[str, int] = {}
    evict_cost: float | None = None
    priority: int = 0
    max_concurrent: int | None = None
    admission: AdmissionControl | None = None
    displaced: bool = False
    phase: ModelPhase = "cold"
    generation: int = 0
    running: int = 0
    switch: int | None = None
    since: float = 0.0
    used_at: float = 0.0
    idle_until: float | None = None
    barrier: QueueEntry | None = None
    batch: int = 0
    unloading: bool = False
    loads: list[tuple[float, float]] = []
    ready_at: float | None = None
    overdue: bool = False
    serving_since: float | None = None
    measured_load_s: float | None = None
    measured_service_s: float | None = None
    speed: ModelSpeed = msgspec.field(default_factory=ModelSpeed)
    failure: Failure | None = None
    failed_until: float = -math.inf

    @property
    def occupies_memory(self) -> bool:
        """Whether it takes memory, or has to get it back: leased models are started again."""
        return self.phase != "cold" or (self.model_lease is not None and not self.lease_void)

    @property
    def load_s(self) -> float:
        """How long a load takes: as measured, else a guess."""
        return _LOAD_S if self.measured_load_s is None else self.measured_load_s

    @property
    def service_s(self) -> float:
        """How long an answer takes: as measured, else a guess."""
        return _SERVICE_S if self.measured_service_s is None else self.measured_service_s

    def record_load(self, seconds: float) -> None:
        """Average a measured load in."""
        self.measured_load_s = seconds if self.measured_load_s is None else 0.5 * self.measured_load_s + 0.5 * seconds

    def record_service(self, seconds: float) -> None:
        """Average a measured answer in."""
        measured = self.measured_service_s
        self.measured_service_s = seconds if measured is None else 0.8 * measured + 0.2 * seconds

    def apply_profile(self, profile: ProfileInfo, now: float) -> None:
        """Apply a changed profile. A running process keeps the number of slots it was started with, unless the profile
        says how many requests it gets at a time.

        The idle time ends when the model is pinned, and starts over when it is unpinned.
        """
        before = self.pinned
        self.default_parallel = max(1, profile.parallel)
        self.ttl_s, self.pinned, self.default = profile.ttl_s, profile.pinned, profile.default
        self.memory_bytes, self.device_bytes = profile.memory_bytes, profile.device_bytes
        self.evict_cost, self.priority = profile.evict_cost, profile.priority
        self.max_concurrent = profile.max_concurrent
        if profile.max_waiting is None:
            self.admission = None
        elif self.admission is None:
            self.admission = AdmissionControl(profile.max_waiting)
        else:
            self.admission.limit = profile.max_waiting
        if self.phase != "ready":
            self.engine_parallel = self.default_parallel
        self.parallel = self.max_concurrent or self.engine_parallel
        if self.measured_load_s is None:
            self.measured_load_s = profile.load_s
        if self.pinned is not before and self.phase == "ready" and not self.running:
            self.mark_idle(now)

    def apply_lease(self, lease: ModelLease | None, now: float) -> None:
        """It is leased, or no longer. The idle time ends with the first lease, and starts over after the last."""
        before, self.model_lease = self.model_lease, lease
        if (before is None) is not (lease is None) and self.phase == "ready" and not self.running:
            self.mark_idle(now)

    def mark_idle(self, now: float, keep_alive_s: float | None = None) -> None:
        """Start the idle time: the profile's, or `keep_alive_s` if the last request named one."""
        keep_s = self.ttl_s if keep_alive_s is None else keep_alive_s
        self.used_at = now
        stays = keep_s is None or keep_s == math.inf or self.pinned or self.model_lease is not None
        self.idle_until = None if keep_s is None or stays else now + keep_s

    def become_ready(self, now: float, parallel: int) -> None:
        """A process answers; the entries queued now are its batch. `parallel` 0: as the profile says."""
        if not self.queue:
            self.loads.clear()
        elif self.phase == "loading":
            self.loads.append((self.since, now))
        self.phase, self.switch, self.since = "ready", None, now
        self.ready_at, self.overdue = None, False
        self.engine_parallel = parallel or self.default_parallel
        self.parallel = self.max_concurrent or self.engine_parallel
        self.displaced = self.lease_void = False
        self.unloading, self.barrier, self.batch = False, None, len(self.queue)
        self.failure, self.failed_until = None, -math.inf
        self.mark_idle(now)

    def become_cold(self) -> None:
        """No process is left; leases of the last one no longer count."""
        if self.phase != "cold":
            self.generation += 1
        self.phase, self.switch, self.running, self.idle_until = "cold", None, 0, None
        self.ready_at, self.overdue = None, False
        self.unloading, self.barrier, self.batch = False, None, 0

    def become_stopping(self) -> None:
        """The process is ending; it occupies memory until then."""
        self.become_cold()
        self.phase = "stopping"

    def become_loading(self, now: float, switch: int | None) -> None:
        """A process starts; `switch` is our order's id, `None` if the host started it on its own."""
        self.become_cold()
        self.phase, self.switch, self.since = "loading", switch, now

    def reconcile(self, status: ModelStatus | None, now: float) -> None:
        """Adopt what a snapshot of the host shows of the model; `None` if it shows nothing."""
        seen = "stopped" if status is None else status.state
        if status is not None and status.failure is not None and seen == "failed" and status.failure.retry_after_s:
            self.failure, self.failed_until = status.failure, now + status.failure.retry_after_s
            self.lease_void = True
        elif seen in ("starting", "ready") or (seen == "stopped" and _was_disabled(self.failure)):
            self.failed_until = -math.inf
        if self.switch is not None:
            return  # our own switch reports by itself; the snapshot may be older than its order
        if seen == "ready" and self.phase in ("cold", "loading"):
            self.become_ready(now, 0)
        elif seen == "starting" and self.phase in ("cold", "ready"):
            self.become_loading(now, None)
        elif seen == "stopping" and self.phase != "stopping":
            self.become_stopping()
        elif seen in ("stopped", "backoff", "failed"):
            self.become_cold()

    def waits_until(self, at: float, max_wait_s: float, now: float) -> float:
        """When an entry queued since `at` has waited for others for `max_wait_s`: the model's own loads do not count, so that
        during one the moment moves along."""
        loads = [*self.loads, (self.since, now)] if self.phase == "loading" else self.loads
        return at + max_wait_s + sum(max(0.0, end - max(begin, at)) for begin, end in loads)

    def footprint(self, activity: Activity | None = None) -> ModelFootprint:
        """The memory that the model occupies or would occupy; `activity` overrides what its phase implies."""
        if activity is None:
            moving, busy = self.phase in ("loading", "stopping"), self.running or self.queue
            activity = "moving" if moving else "busy" if busy else "idle"
        # Busy models count by when they became ready: by last use, two of them would be drained in turns, neither ever
        # empty.
        return ModelFootprint(
            model=self.name,
            memory_bytes=self.memory_bytes,
            device_bytes=self.device_bytes,
            pinned=self.pinned,
            leased=self.model_lease is not None,
            activity=activity,
            used_at=self.since if activity == "busy" else self.used_at,
            evict_cost=self.load_s if self.evict_cost is None else self.evict_cost,
        )


def _was_disabled(failure: Failure | None) -> bool:
    """Whether no engine could load the model: a host that no longer says so can."""
    return failure is not None and failure.kind in ("file_missing", "not_gguf", "model_damaged", "engine_missing")

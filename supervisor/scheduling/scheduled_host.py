"""What one host's scheduler, leases and supervisor show of it."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from hostler.adapters.canonical import Progress
from hostler.supervisor.contract import HostStatus, ModelLease, PromptIdentity, Supervisor, SwitchMoved
from hostler.supervisor.scheduling.conversations import AnsweredConversations, read_before
from hostler.supervisor.scheduling.engines import EngineAddresses
from hostler.supervisor.scheduling.estimates import SwitchEstimate
from hostler.supervisor.scheduling.events import Waiting
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.progress import QueueProgress, SwitchSpan
from hostler.supervisor.scheduling.scheduler import Scheduler
from hostler.supervisor.scheduling.types import SchedulerSettings
from hostler.supervisor.scheduling.views import HostOffer, ModelView, ServiceDistance, ServiceOutlook


class ScheduledHost:
    """A host with its scheduler and leases, for those who look at it. `Orchestrator` makes it do something."""

    def __init__(
        self, name: str, supervisor: Supervisor, settings: SchedulerSettings, clock: Callable[[], float]
    ) -> None:
        self.name = name
        self._clock = clock
        self._scheduler = Scheduler(settings)
        self._leases: dict[int, Lease] = {}
        self._addresses = EngineAddresses(supervisor)
        self._switch_spans: dict[str, SwitchSpan] = {}
        self._progress = QueueProgress(self._scheduler, self._leases)
        self._conversations = AnsweredConversations()
        self.status: HostStatus | None = None
        self.reachable = self.returning = False
        self.synced = anyio.Event()

    @property
    def waiting(self) -> int:
        """The number of queued requests, without background work."""
        return sum(not (lease.settled or lease.background) for lease in self._leases.values())

    @property
    def serving(self) -> int:
        """The number of requests that hold a lease."""
        return sum(lease.granted for lease in self._leases.values())

    @property
    def idle_since(self) -> float | None:
        """When the last lease ended, minus infinity if there was none; `None` while one is held or waits, a model is leased,
        or one is loading or stopping."""
        moving = any(view.phase in ("loading", "stopping") for view in self.models())
        return None if self._leases or self.model_leases or moving else self._scheduler.used_at

    def models(self) -> tuple[ModelView, ...]:
        """See `Host`."""
        return self._scheduler.view().models

    @property
    def model_leases(self) -> tuple[ModelLease, ...]:
        """See `Host`."""
        return () if self.status is None else self.status.leases

    def outlooks(self) -> dict[str, ServiceOutlook]:
        """What every model's `distance` follows from."""
        return self._scheduler.outlooks(self._clock())

    def idle_times(self, now: float) -> dict[str, float]:
        """Seconds until each idle model is unloaded, by model; models that stay loaded are left out."""
        return {view.model: view.idle_until - now for view in self.models() if view.idle_until is not None}

    def is_serving(self, model: str) -> bool:
        """Whether a lease of `model` is held."""
        return any(lease.granted and lease.model == model for lease in self._leases.values())

    def distance(self, model: str) -> ServiceDistance:
        """How far a request for `model` is from being served here."""
        return self._scheduler.distance(model, self._clock())

    def offer(self, model: str, prompt: PromptIdentity | None = None) -> HostOffer:
        """See `Host`."""
        read = read_before(prompt, self._conversations.ends(model))
        return self._scheduler.offer(model, read, self._clock())

    def conversations(self) -> dict[str, tuple[int, ...]]:
        """See `AnsweredConversations.published`."""
        return self._conversations.published()

    def estimate_s(self, lease: Lease) -> float:
        """See `Lease.estimate_s`."""
        return self._scheduler.estimate_s(lease.model, self._clock(), lease.id)

    def switched_s(self, lease: Lease) -> float:
        """See `Lease.switched_s`."""
        switch = self._switch_spans.get(lease.model)
        return 0.0 if switch is None else switch.overlap_s(lease.requested_at, self._clock())

    async def estimate_switch(self, model: str) -> SwitchEstimate | None:
        """See `Host`."""
        return self._scheduler.estimate_switch(model, self._clock())

    def queue(self) -> tuple[Waiting, ...]:
        """The queued requests in the order of service."""
        return self._progress.queue(self._clock())

    def place(self, lease: Lease) -> tuple[int | None, float, bool]:
        """The lease's position, its estimated wait in seconds, and whether that was measured."""
        return self._progress.place(lease, self._clock())

    def switches(self) -> list[SwitchMoved]:
        """The switches in progress."""
        return self._progress.switches()

    def progress(self, lease: Lease) -> Progress:
        """See `Lease.progress`."""
        return self._progress.progress(lease, self._clock(), self._addresses.models())

    def holds(self, lease: Lease) -> bool:
        """Whether the lease was neither released nor withdrawn."""
        return lease.id in self._leases

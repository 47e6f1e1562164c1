"""What is known here of a host on another machine: what its supervisor published, and the leases requested from here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import anyio

from hostler.adapters.canonical import Progress
from hostler.supervisor.contract import HostStatus, ModelLease, PromptIdentity
from hostler.supervisor.remote_view import RemoteView
from hostler.supervisor.scheduling.events import Waiting
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.progress import shown_progress
from hostler.supervisor.scheduling.views import HostOffer, ModelView, ServiceDistance


class FollowedHost:
    """A host with its published state and this gateway's leases, for those who look at it.

    `RemoteHost` keeps it up to date and leases the models. `ScheduledHost` is the same for a host of this process.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.name = name
        self._clock = clock
        self._leases: dict[int, Lease] = {}
        self._view = RemoteView()
        self._closing = False
        self.status: HostStatus | None = None
        self.reachable = False
        self.synced = anyio.Event()

    @property
    def _usable(self) -> bool:
        return self.reachable and not self._closing

    @property
    def model_leases(self) -> tuple[ModelLease, ...]:
        """See `Host`."""
        return () if self.status is None else self.status.leases

    @property
    def waiting(self) -> int:
        """See `Host`."""
        return self._view.others_waiting + self._own_waiting()

    @property
    def serving(self) -> int:
        """See `Host`."""
        return self._view.others_serving + self._own_serving()

    def _own_waiting(self) -> int:
        return sum(not (lease.settled or lease.background) for lease in self._leases.values())

    def _own_serving(self) -> int:
        return sum(lease.granted for lease in self._leases.values())

    def models(self) -> Sequence[ModelView]:
        """See `Host`."""
        return self._view.models

    def queue(self) -> Sequence[Waiting]:
        """See `Host`."""
        return self._view.queue

    def idle_times(self, now: float) -> dict[str, float]:
        """See `Host`."""
        return {view.model: view.idle_until - now for view in self._view.models if view.idle_until is not None}

    def is_serving(self, model: str) -> bool:
        """See `Host`."""
        return self._view.running(model) > 0 or any(
            lease.granted and lease.model == model for lease in self._leases.values()
        )

    def distance(self, model: str) -> ServiceDistance:
        """See `Host`. By the supervisor's last view, and what was requested from here since then."""
        return self._view.distance(model, available=self._usable)

    def offer(self, model: str, prompt: PromptIdentity | None = None) -> HostOffer:
        """See `Host`."""
        return self._view.offer(model, prompt, available=self._usable)

    def estimate_s(self, lease: Lease) -> float:
        """See `Lease.estimate_s`."""
        return self._view.estimate_s(lease.id, self._clock())

    def switched_s(self, lease: Lease) -> float:
        """See `Lease.switched_s`."""
        return self._view.switched_s(lease.model, lease.requested_at, self._clock())

    def progress(self, lease: Lease) -> Progress:
        """See `Lease.progress`."""
        now = self._clock()
        position, eta_s = self._view.place(lease.id, now)
        switch = self._view.switches.get(lease.model)
        return shown_progress(lease.model, switch, position, eta_s, self._loaded(), now - lease.requested_at, now)

    def _loaded(self) -> Collection[str]:
        return () if self.status is None else [each.model for each in self.status.models if each.state == "ready"]

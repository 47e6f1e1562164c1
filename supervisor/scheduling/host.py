"""A host as gateways see it, whether its scheduler runs in their process or behind a connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import anyio

from hostler.adapters.errors import GatewayError
from hostler.supervisor.contract import EngineAddress, HostStatus, ModelLease, PromptIdentity
from hostler.supervisor.scheduling.estimates import SwitchEstimate
from hostler.supervisor.scheduling.events import Waiting
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.views import HostOffer, ModelView, ServiceDistance


def is_draining(host: Host) -> bool:
    """Whether the host is out of service, by its last known status."""
    return host.status is not None and host.status.draining


class Host(Protocol):
    """Leases the models of one host, and shows what it does.

    `Orchestrator` is the one of this process, `RemoteHost` one on another machine. `status` is the last known one,
    `synced` is set once the first has arrived. Plain calls never wait.
    """

    name: str
    status: HostStatus | None
    reachable: bool
    synced: anyio.Event

    async def run(self) -> None:
        """Follow the host until cancelled."""
        ...

    def lease(
        self,
        model: str,
        *,
        client: str = "",
        request_id: str = "",
        keep_alive_s: float | None = None,
        priority: int = 0,
        client_port: int = 0,
        prompt: PromptIdentity | None = None,
        waited_s: float = 0.0,
        background: bool = False,
    ) -> Lease:
        """Request a lease of `model`: granted at once if a slot is free, refused at once if it cannot be queued.

        `waited_s` is how long the request has waited already, at another host: it is queued as if it had waited here.
        `client_port` as in `Ticket`, `prompt` identifies the conversation: the lease then names the slot that holds it.
        `background` as in `Lease`.
        """
        ...

    def stop(self, error: Callable[[], GatewayError]) -> None:
        """Refuse this gateway's queued leases with `error()`, and every later one that would have to queue."""
        ...

    def engine_lost(self, address: EngineAddress) -> None:
        """Nothing listens at this address any more: the next request starts a new process."""
        ...

    def set_reachable(self, reachable: bool) -> None:
        """Whether the supervisor answers, as seen by others than this host: a failed check of its machine."""
        ...

    def seed_service_times(self, answers: Mapping[str, Sequence[float]]) -> None:
        """Durations of each model's earlier answers, oldest first: a basis for estimates."""
        ...

    async def unload(self, model: str, *, force: bool = False) -> None:
        """Refuse the model's queue and stop the model, with `force` at once. Raises `GatewayError`."""
        ...

    async def pin(self, model: str, pinned: bool) -> bool:
        """Pin or unpin `model`. Returns whether that survives a restart. Raises `GatewayError`."""
        ...

    async def drain(self, draining: bool) -> bool:
        """Take the host out of service, or back into it: see `HostStatus.draining`. Returns whether that survives a
        restart. Raises `GatewayError`."""
        ...

    async def lease_model(self, model: str, *, holder: str, seconds: float) -> ModelLease:
        """Load `model` and keep it loaded for `seconds` from now, or extend the lease that `holder` has of it.

        Until it ends, requests for models that would have to take its place are refused. Raises `GatewayError`.
        """
        ...

    async def end_lease(self, lease_id: str) -> ModelLease | None:
        """End a lease of a model; `None` if there is none of that id. Raises `GatewayError`."""
        ...

    @property
    def model_leases(self) -> tuple[ModelLease, ...]:
        """The leases of models, the first to expire first."""
        ...

    async def estimate_switch(self, model: str) -> SwitchEstimate | None:
        """What a request for `model` would take and displace now; `None` if this host has no such model."""
        ...

    @property
    def returning(self) -> bool:
        """Whether it is not reachable now, but will be soon."""
        ...

    @property
    def waiting(self) -> int:
        """The number of queued requests of all gateways, without background work."""
        ...

    @property
    def serving(self) -> int:
        """The number of requests of all gateways that hold a lease."""
        ...

    def models(self) -> Sequence[ModelView]:
        """The models as the scheduler sees them; times are by this process's clock."""
        ...

    def queue(self) -> Sequence[Waiting]:
        """The queued requests of all gateways, in the order of service."""
        ...

    def idle_times(self, now: float) -> dict[str, float]:
        """Seconds until each idle model is unloaded, by model; models that stay loaded are left out."""
        ...

    def is_serving(self, model: str) -> bool:
        """Whether a lease of `model` is held."""
        ...

    def distance(self, model: str) -> ServiceDistance:
        """How far a request for `model` is from being served here."""
        ...

    def offer(self, model: str, prompt: PromptIdentity | None = None) -> HostOffer:
        """What a request for `model` with this prompt is offered here."""
        ...

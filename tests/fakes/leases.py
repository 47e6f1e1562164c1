"""A host that grants and refuses leases as a test says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import anyio

from hostler.adapters.canonical import Progress, Usage
from hostler.adapters.errors import GatewayError
from hostler.supervisor.contract import EngineAddress, HostStatus, PromptIdentity
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.views import HostOffer, ServiceDistance


def engine(port: int = 1) -> EngineAddress:
    """An engine's address."""
    return EngineAddress(model="m", host="127.0.0.1", port=port, key="k", generation=port, context=1, parallel=1)


class FakeHost:
    """As much of an orchestrator as the middleware use. Without `grants` and `refuses` leases stay queued.

    `waited` is how long each lease waits in all, and in a switch, as the orchestrator would note it. `offered` is what it
    offers to whatever request.
    """

    def __init__(self, *, grants: bool = False, refuses: GatewayError | None = None) -> None:
        self._grants = grants
        self._refuses = refuses
        self.asked = anyio.Event()
        self.estimate = 7.0
        self.position: int | None = 1
        self.waited = (0.0, 0.0)
        self.switching_s: Callable[[], float] = lambda: 0.0
        self.requested: list[dict[str, Any]] = []
        self.leases: list[Lease] = []
        self.released: list[Lease] = []
        self.unloaded: list[str] = []
        self.lost: list[EngineAddress] = []
        self.offered = HostOffer(distance=ServiceDistance(steps=2, wait_s=math.inf, load=1.0), phase="ready")
        self.status: HostStatus | None = None
        self.prompts: list[PromptIdentity | None] = []
        self.answers: list[tuple[EngineAddress, Usage | None]] = []

    def lease(self, model: str, **fields: Any) -> Lease:
        self.requested.append({"model": model, **fields})
        lease = Lease(self, lease_id=len(self.leases) + 1, model=model, requested_at=0.0)
        self.leases.append(lease)
        self.asked.set()
        if self._grants:
            lease.grant(engine(len(self.leases)))
        elif self._refuses is not None:
            lease.refuse(self._refuses)
        return lease

    def offer(self, model: str, prompt: PromptIdentity | None = None) -> HostOffer:
        self.prompts.append(prompt)
        return self.offered

    def progress(self, lease: Lease) -> Progress:
        lease.waited_s, lease.switch_s = self.waited
        return Progress(phase="queued", model=lease.model, position=self.position)

    def estimate_s(self, lease: Lease) -> float:
        return self.estimate

    def switched_s(self, lease: Lease) -> float:
        return self.switching_s()

    def release(self, lease: Lease) -> None:
        if lease not in self.released:
            self.released.append(lease)
            if lease.answered:
                self.answers.append((lease.address(), lease.usage))

    async def unload(self, model: str) -> None:
        self.unloaded.append(model)

    def engine_lost(self, address: EngineAddress) -> None:
        self.lost.append(address)

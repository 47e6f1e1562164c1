"""A request's place in a host's queue, and the lease it becomes. The requester waits; the orchestrator settles it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

from hostler.adapters.canonical import Progress, Usage
from hostler.adapters.errors import GatewayError
from hostler.supervisor.contract import EngineAddress, PromptIdentity, SlotAssignment
from hostler.supervisor.scheduling.types import Refuse, RevokeReason


class LeaseOwner(Protocol):
    """What a lease needs from the host that granted it."""

    def progress(self, lease: Lease) -> Progress: ...

    def estimate_s(self, lease: Lease) -> float: ...

    def switched_s(self, lease: Lease) -> float: ...

    def release(self, lease: Lease) -> None: ...


class Lease:
    """A place in the queue for a model until it is granted, then the right to use the model. Always `release` it.

    `acknowledged`: the host has received the request. `queued`: it was not granted at once. `revoked`: why its
    engine was stopped while the lease was held. `refusal` is the scheduler's decision, if it was refused by one. `waited_s`
    is how long it took to settle, `switch_s` the part of that spent in a switch to its model. `prompt` identifies its
    conversation, `slot` is the engine's slot for it (`None`: the engine chooses), `assignment` what ends with the lease.
    `background`: it is served while the host has nothing else to do, and revoked when it has.
    `answered`, `usage` and `timed_out` are reported with the release. `on_change` is called when it is settled or revoked.
    """

    __slots__ = (
        "_address",
        "_error",
        "_notified",
        "_owner",
        "_woken",
        "acknowledged",
        "answered",
        "assignment",
        "background",
        "client",
        "client_port",
        "id",
        "keep_alive_s",
        "model",
        "on_change",
        "priority",
        "prompt",
        "queued",
        "refusal",
        "request_id",
        "requested_at",
        "revoked",
        "slot",
        "switch_s",
        "timed_out",
        "usage",
        "waited_s",
    )

    def __init__(
        self,
        owner: LeaseOwner,
        *,
        lease_id: int,
        model: str,
        requested_at: float,
        client: str = "",
        request_id: str = "",
        keep_alive_s: float | None = None,
        priority: int = 0,
        client_port: int = 0,
        prompt: PromptIdentity | None = None,
        background: bool = False,
    ) -> None:
        self._owner = owner
        self._address: EngineAddress | None = None
        self._error: GatewayError | None = None
        self._woken: asyncio.Future[None] | None = None
        self._notified = False
        self.id = lease_id
        self.model = model
        self.requested_at = requested_at
        self.client = client
        self.request_id = request_id
        self.keep_alive_s = keep_alive_s
        self.priority = priority
        self.client_port = client_port
        self.prompt = prompt
        self.background = background
        self.slot: int | None = None
        self.assignment: SlotAssignment | None = None
        self.acknowledged = True
        self.queued = False
        self.revoked: RevokeReason | None = None
        self.refusal: Refuse | None = None
        self.answered = False
        self.timed_out = False
        self.usage: Usage | None = None
        self.on_change: Callable[[Lease], None] | None = None
        self.waited_s = 0.0
        self.switch_s = 0.0

    @property
    def settled(self) -> bool:
        """Whether it was granted or refused."""
        return self._address is not None or self._error is not None

    @property
    def granted(self) -> bool:
        """Whether the model may be used."""
        return self._address is not None

    async def wait(self, seconds: float) -> bool:
        """Wait until it is settled or there is progress to show, for at most `seconds`. Returns `settled`."""
        if not self.settled and not self._notified:
            # A plain future: every lease of a remote host waits here, and an event with a cancel scope costs five times as much.
            loop = asyncio.get_running_loop()
            self._woken = loop.create_future()
            timer = None if seconds == math.inf else loop.call_later(max(0.0, seconds), self._end_wait)
            try:
                await self._woken
            finally:
                if timer is not None:
                    timer.cancel()
        return self.settled

    def address(self) -> EngineAddress:
        """Where the engine listens. Raises the reason if the lease was refused."""
        if self._error is not None:
            raise self._error
        assert self._address is not None, "the lease is not settled yet"
        return self._address

    def take_notification(self) -> bool:
        """Whether the switch has entered another phase since the last call."""
        notified, self._notified = self._notified, False
        return notified

    def progress(self) -> Progress:
        """What the lease waits for now."""
        return self._owner.progress(self)

    def estimate_s(self) -> float:
        """Estimated seconds until it is granted."""
        return self._owner.estimate_s(self)

    def switched_s(self) -> float:
        """Seconds that it has waited for a switch to its model so far."""
        return self._owner.switched_s(self)

    def report_answer(self, usage: Usage | None) -> None:
        """An answer has ended; the release passes its usage on to the host."""
        self.answered, self.usage = True, usage

    def report_timeout(self) -> None:
        """The engine was silent for longer than it may be; the release passes that on to the host."""
        self.timed_out = True

    def release(self) -> None:
        """End the lease, or leave the queue. Idempotent."""
        self._owner.release(self)

    # For the owner.

    def record_wait(self, now: float) -> None:
        """Note how long it has waited, and how much of that was a switch to its model."""
        self.waited_s = now - self.requested_at
        self.switch_s = self._owner.switched_s(self)

    def grant(self, address: EngineAddress) -> None:
        """The model may be used at `address`."""
        self._address = address
        self._wake()

    def refuse(self, error: GatewayError, refusal: Refuse | None = None) -> None:
        """The lease will not be granted; `address` raises `error`."""
        self._error, self.refusal = error, refusal
        self._wake()

    def revoke(self, reason: RevokeReason) -> None:
        """The engine is stopped although the lease is held: its answer is cut off."""
        self.revoked = reason
        if self.on_change is not None:
            self.on_change(self)

    def acknowledge(self) -> None:
        """The host has received the request, and will say more."""
        if not self.acknowledged:
            self.acknowledged = True
            self._end_wait()

    def notify(self) -> None:
        """The switch to its model has entered another phase."""
        self._notified = True
        self._end_wait()

    def _end_wait(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def _wake(self) -> None:
        self._end_wait()
        if self.on_change is not None:
            self.on_change(self)

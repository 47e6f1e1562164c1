"""Leases of models: a model is loaded as for a request, and then kept loaded by the supervisor until the lease ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio

from hostler.adapters.errors import GatewayError, ModelUnavailable
from hostler.supervisor.contract import (
    ModelLease,
    Supervisor,
    SupervisorError,
    SupervisorUnreachable,
    SupportsModelLeases,
    UnknownProfile,
)
from hostler.supervisor.scheduling.host import Host
from hostler.supervisor.scheduling.lease import Lease


class ModelLeasing:
    """Adds and ends leases of the models of `host`.

    `apply` receives all leases after each change. `order_error` is the error for clients of an order that the supervisor
    did not carry out.
    """

    def __init__(
        self,
        host: Host,
        supervisor: Supervisor,
        *,
        apply: Callable[[tuple[ModelLease, ...]], None],
        order_error: Callable[[UnknownProfile | SupervisorUnreachable, str], GatewayError],
    ) -> None:
        self._host = host
        self._supervisor = supervisor
        self._apply = apply
        self._order_error = order_error

    async def add(self, model: str, *, holder: str, seconds: float) -> ModelLease:
        """See `Host.lease_model`."""
        supervisor = self._leasing(model)
        if self._is_ready(model):
            lease = await self._add(supervisor, model, holder, seconds)
        else:
            # While this ticket is held the model stays until it is leased.
            with self._ticket(model) as ticket:
                await _loaded(ticket)
                lease = await self._add(supervisor, model, holder, seconds)
        try:
            await anyio.lowlevel.checkpoint_if_cancelled()
            if not self._is_ready(model):  # it was unloaded a moment ago
                with self._ticket(model) as ticket:
                    await _loaded(ticket)
        except BaseException:
            # Also if the client has left, which then does not know of its lease.
            with anyio.CancelScope(shield=True):
                await self.end(lease.id)
            raise
        return lease

    async def end(self, lease_id: str) -> ModelLease | None:
        """See `Host.end_lease`."""
        ended = await self._leasing("").end_lease(lease_id)
        self._apply(tuple(lease for lease in self._host.model_leases if lease.id != lease_id))
        return ended

    def _leasing(self, model: str) -> SupportsModelLeases:
        if not isinstance(self._supervisor, SupportsModelLeases):
            raise ModelUnavailable(f"{self._host.name} does not lease models", model=model or None, final=True)
        return self._supervisor

    def _is_ready(self, model: str) -> bool:
        return any(view.model == model and view.phase == "ready" for view in self._host.models())

    @contextmanager
    def _ticket(self, model: str) -> Iterator[Lease]:
        ticket = self._host.lease(model, client="operator")
        try:
            yield ticket
        finally:
            ticket.release()

    async def _add(self, supervisor: SupportsModelLeases, model: str, holder: str, seconds: float) -> ModelLease:
        try:
            with anyio.CancelScope(shield=True):
                lease = await supervisor.add_lease(model, holder=holder, seconds=seconds)
        except SupervisorError as error:
            raise ModelUnavailable(error.failure.message, model=model, final=True) from None
        except (UnknownProfile, SupervisorUnreachable) as error:
            raise self._order_error(error, model) from None
        self._apply((*(each for each in self._host.model_leases if each.id != lease.id), lease))
        return lease


async def _loaded(ticket: Lease) -> None:
    """Wait until the ticket's model is loaded; raises why it cannot be."""
    while not await ticket.wait(60.0):
        ticket.take_notification()
    ticket.address()

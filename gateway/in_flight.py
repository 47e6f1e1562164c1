"""Requests in flight as values, whichever process of the gateway serves them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Protocol

import msgspec

from hostler.adapters.canonical import ModelInfoRequest
from hostler.gateway.context import RequestContext

#: Requests in flight that are listed at most.
MAX_LISTED = 200


class RequestView(msgspec.Struct, frozen=True, kw_only=True):
    """A request in flight; `at` is its arrival. `phase`: `waiting` for its model, `prefill`, or `generating`. `gateway` is the
    name of the one that serves it, in a cluster."""

    id: str
    at: float
    protocol: str
    operation: str
    client: str
    phase: str
    requested_model: str | None = None
    model: str | None = None
    backend: str | None = None
    hop: int = 0
    reason: str = ""
    queue_s: float = 0.0
    switch_s: float = 0.0
    first_token_s: float | None = None
    gateway: str | None = None


class OtherRequests(Protocol):
    """The requests that other processes of this gateway, or other gateways, serve."""

    def views(self) -> Sequence[RequestView]:
        """The requests in flight, as far as is known."""
        ...

    async def refresh(self) -> None:
        """Ask the other processes, but wait for none that does not answer. What they have reported until then has arrived."""
        ...

    async def cancel(self, request_id: str) -> int:
        """Cancel the requests with this id; returns their number."""
        ...


class OtherProcesses(OtherRequests, Protocol):
    """The worker processes of this gateway: how many there are to be, how many serve requests, how many were replaced, and
    their requests."""

    @property
    def count(self) -> int: ...

    @property
    def serving(self) -> int: ...

    @property
    def restarts(self) -> int: ...


def request_views(
    contexts: Iterable[RequestContext], hosts: Container[str], *, offset: float
) -> tuple[RequestView, ...]:
    """The requests, without model lists and health checks. `hosts` are the backends with a supervisor, `offset` is what
    the clock lacks to the seconds since the epoch."""
    views: list[RequestView] = []
    for context in contexts:
        if len(views) == MAX_LISTED:
            break
        if not isinstance(context.request, ModelInfoRequest):
            views.append(_view(context, hosts, offset))
    return tuple(views)


def _view(context: RequestContext, hosts: Container[str], offset: float) -> RequestView:
    attempt = context.attempt
    first = None if attempt is None else attempt.first_token_at
    if first is not None:
        phase = "generating"
    elif attempt is None or (attempt.target.backend in hosts and attempt.address is None):
        phase = "waiting"
    else:
        phase = "prefill"
    queue_s, switch_s = context.waits
    return RequestView(
        id=context.id,
        at=round(context.started_at + offset, 2),
        protocol=context.adapter.name,
        operation=context.operation.name,
        client=context.client.name,
        phase=phase,
        requested_model=context.requested_model,
        model=context.model,
        backend=None if attempt is None else attempt.target.backend,
        hop=context.hop,
        reason=context.reason,
        queue_s=round(queue_s, 3),
        switch_s=round(switch_s, 3),
        first_token_s=None if first is None else round(first - context.started_at, 3),
    )

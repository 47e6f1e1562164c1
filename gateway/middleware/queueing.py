"""Queueing: requests for a model on a host wait here until they hold a lease of it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import anyio

from hostler.adapters.canonical import LoadRequest
from hostler.adapters.errors import WaitTimeout
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.context import RequestContext, Target
from hostler.gateway.lease_moves import LeaseMoves, QueuedLease
from hostler.gateway.middleware.base import CallNext, RequestMiddleware
from hostler.gateway.prompt_identity import identify_prompt
from hostler.supervisor.scheduling.errors import EngineLost, Preempted
from hostler.supervisor.scheduling.host import Host
from hostler.supervisor.scheduling.lease import Lease

#: How often a request that has nearly used up its time looks whether the switch to its model goes on, in seconds.
_LOOK_AGAIN_S = 0.1


class QueueingMiddleware(RequestMiddleware):
    """Admits the request to its host's queue, waits for the lease, and passes the request on with `attempt.lease` set.
    Meanwhile the lease's progress is shown to streaming clients. Backends without a supervisor have no queue.

    Raises `TooManyRequests` if the queue is full, `WaitTimeout` at the request's deadline, and the host's error if it
    refuses. A request whose engine was lost before anything was sent is queued again, as is background work
    that was cut off by other requests. `MovedElsewhere` is raised for a request that another host serves sooner.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Mapping[str, Host],
        moves: LeaseMoves,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(app)
        self._hosts = hosts
        self._moves = moves
        self._clock = clock

    def dispatch(self, context: RequestContext, call_next: CallNext) -> Awaitable[None]:
        attempt = context.attempt
        assert attempt is not None
        host = self._hosts.get(attempt.target.backend)
        request = context.request
        if host is None or (isinstance(request, LoadRequest) and request.kind == "unload"):
            return call_next()
        return self._queue(context, host, call_next)

    async def _queue(self, context: RequestContext, host: Host, call_next: CallNext) -> None:
        if context.prompt is None:
            context.prompt = await identify_prompt(context.request, context.headers, context.client.owner)
        while True:
            lease, context.granted = context.granted or self._ask(context, host, context.current.target), None
            context.current.lease = lease
            try:
                if not lease.settled:
                    await self._wait(context, lease)
                lease.address()
                if not context.background:
                    await call_next()
                    return
                if await _preemptible(lease, call_next):
                    return
                if context.writer.committed:
                    raise Preempted(
                        f"background work for {lease.model} was cut off by other requests", model=lease.model
                    )
            except EngineLost:
                pass
            finally:
                lease.release()

    def _ask(self, context: RequestContext, host: Host, target: Target, since: float | None = None) -> Lease:
        """Ask for a lease; the request has waited elsewhere `since` then."""
        keep_alive_s = getattr(context.request, "keep_alive_s", None)
        if keep_alive_s is None:
            keep_alive_s = self._moves.replica_keep_alive_s(target.backend, context.candidates)
        return host.lease(
            target.model,
            client=context.client.name,
            request_id=context.id,
            keep_alive_s=keep_alive_s,
            priority=context.client.priority,
            client_port=context.client_port,
            prompt=context.prompt,
            waited_s=0.0 if since is None else max(0.0, self._clock() - since),
            background=context.background,
        )

    async def _wait(self, context: RequestContext, lease: Lease) -> None:
        """Wait until the lease is granted or refused. Its time counts in the attempt, however waiting ends."""
        try:
            ask_elsewhere = partial(self._ask, context, since=lease.requested_at)
            with self._moves.queued(context, lease, ask_elsewhere) as queued:
                await self._settled(context, lease, queued)
        finally:
            if not lease.settled:
                lease.release()
            attempt = context.current
            attempt.switch_s += lease.switch_s
            attempt.queue_s += max(0.0, lease.waited_s - lease.switch_s)
            if context.deadline is not None:
                context.deadline += lease.switch_s

    async def _settled(self, context: RequestContext, lease: Lease, queued: QueuedLease) -> None:
        context.waits_for = lambda _: lease.progress()
        while not await lease.wait(self._left_s(context, lease)):
            queued.check_moved()
            if lease.take_notification():
                context.hasten()
            if self._left_s(context, lease) <= 0:
                raise WaitTimeout(
                    f"{lease.model} did not become available within {self._clock() - context.started_at:.0f} seconds "
                    "(gateway.queue.max_wait_s); try again, or use a loaded model",
                    retry_after_s=lease.estimate_s(),
                    model=lease.model,
                )

    def _left_s(self, context: RequestContext, lease: Lease) -> float:
        """Seconds that the request may still wait for others: a switch to its own model does not count, and is bounded by
        the supervisor."""
        if context.deadline is None:
            return math.inf
        switched_s = lease.switched_s()
        left_s = context.deadline + switched_s - self._clock()
        # During the switch nothing is used up: do not look again too soon.
        return max(left_s, _LOOK_AGAIN_S) if switched_s and left_s > 0 else left_s


async def _preemptible(lease: Lease, call_next: CallNext) -> bool:
    """Have background work answered; `False` if it was cut off since its lease was revoked."""
    with anyio.CancelScope() as scope:

        def on_change(lease: Lease) -> None:
            if lease.revoked is not None:
                scope.cancel()

        lease.on_change = on_change
        on_change(lease)
        await call_next()
    return not scope.cancelled_caught

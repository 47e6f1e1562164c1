"""Queueing: requests for a model on a host wait here until they hold a lease of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from hostler.adapters.canonical import LoadRequest
from hostler.adapters.errors import WaitTimeout
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.config import SwitchingSettings
from hostler.gateway.context import RequestContext
from hostler.gateway.middleware.base import CallNext, RequestMiddleware
from hostler.gateway.middleware.heartbeat import Heartbeat
from hostler.supervisor.scheduling.errors import EngineLost
from hostler.supervisor.scheduling.host import Host
from hostler.supervisor.scheduling.lease import Lease


class QueueingMiddleware(RequestMiddleware):
    """Admits the request to its host's queue, waits for the lease with heartbeats to streaming clients, and passes the
    request on with `attempt.lease` set. Backends without a supervisor have no queue.

    Raises `TooManyRequests` if the queue is full, `WaitTimeout` at the request's deadline, and the host's error if it
    refuses. A request whose engine was lost before anything was sent is queued again.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Mapping[str, Host],
        settings: SwitchingSettings,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(app)
        self._hosts = hosts
        self._settings = settings
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
        while True:
            lease = context.current.lease = self._join(context, host)
            try:
                if not lease.settled:
                    await self._wait(context, lease)
                lease.address()
                await call_next()
                return
            except EngineLost:
                pass
            finally:
                lease.release()

    @staticmethod
    def _join(context: RequestContext, host: Host) -> Lease:
        return host.lease(
            context.current.target.model,
            client=context.client.name,
            request_id=context.id,
            keep_alive_s=getattr(context.request, "keep_alive_s", None),
            priority=context.client.priority,
            client_port=context.client_port,
        )

    async def _wait(self, context: RequestContext, lease: Lease) -> None:
        """Wait until the lease is granted or refused. Its time counts in the attempt, however waiting ends."""
        try:
            await self._settled(context, lease)
        finally:
            if not lease.settled:
                lease.release()
            attempt = context.current
            attempt.switch_s += lease.switch_s
            attempt.queue_s += max(0.0, lease.waited_s - lease.switch_s)

    async def _settled(self, context: RequestContext, lease: Lease) -> None:
        deadline = context.deadline if context.deadline is not None else float("inf")
        heartbeat = Heartbeat(context, self._settings, self._clock)
        # A request that its host has not received is not shown as waiting there: the host may be gone.
        while not await lease.wait(min(heartbeat.due if lease.acknowledged else deadline, deadline) - self._clock()):
            if lease.take_notification():
                heartbeat.hasten()
            now = self._clock()
            if now >= deadline:
                raise WaitTimeout(
                    f"{lease.model} did not become available within {now - context.started_at:.0f} seconds "
                    "(gateway.queue.max_wait_s); try again, or use a loaded model",
                    retry_after_s=lease.estimate_s(),
                    model=lease.model,
                )
            if now >= heartbeat.due and lease.acknowledged:
                await heartbeat.show(lease.progress())

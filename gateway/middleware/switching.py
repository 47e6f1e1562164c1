"""The right to use a loaded model: waiting for it, telling the client meanwhile, and giving it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hostler.adapters.errors import BackendError, BackendUnavailable, WaitTimeout
from hostler.adapters.types import Control
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.config import SwitchingSettings
from hostler.gateway.context import RequestContext, Target
from hostler.gateway.middleware.base import CallNext, RequestMiddleware
from hostler.gateway.scheduling.errors import unloaded
from hostler.gateway.scheduling.lease import Lease
from hostler.gateway.scheduling.orchestrator import Orchestrator


class SwitchingMiddleware(RequestMiddleware):
    """Holds a lease of the model while the request is answered. Backends without a supervisor need none."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Mapping[str, Orchestrator],
        settings: SwitchingSettings,
        used: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(app)
        self._hosts = hosts
        self._settings = settings
        self._used = used
        self._clock = clock

    async def dispatch(self, context: RequestContext, call_next: CallNext) -> None:
        target = context.current.target
        host = self._hosts.get(target.backend)
        if host is None:
            await call_next()
            return
        if isinstance(context.request, Control) and context.request.kind == "unload":
            await host.unload(target.model)
            await call_next()
            return
        try:
            await self._leased(context, host, target, call_next)
        except BackendUnavailable as error:
            # The engine died while it was idle and nobody had noticed: nothing was sent, so one fresh start is free.
            # Where a connection was waited for in vain it is the machine that is gone.
            if error.timed_out or context.writer.committed or context.current.address is None:
                raise
            host.lost(context.current.address)
            await self._leased(context, host, target, call_next)

    async def _leased(self, context: RequestContext, host: Orchestrator, target: Target, call_next: CallNext) -> None:
        keep_alive_s = getattr(context.request, "keep_alive_s", None)
        client, attempt = context.client, context.current
        turn = host.ask(
            target.model,
            client=client.name,
            request_id=context.id,
            keep_alive_s=keep_alive_s,
            priority=client.priority,
        )
        try:
            if not turn.settled:
                try:
                    await self._wait(context, turn)
                finally:
                    if not turn.settled:
                        turn.give_back()  # whoever leaves the line has waited, too
                    attempt.switch_s += turn.switch_s
                    attempt.queue_s += max(0.0, turn.waited_s - turn.switch_s)
            attempt.address = turn.address()
            self._used(target.model)
            await call_next()
            host.answered(attempt.address, attempt.usage)
        except BackendError as error:
            if turn.taken_away:
                raise unloaded(target.model) from error
            raise
        finally:
            turn.give_back()

    async def _wait(self, context: RequestContext, turn: Lease) -> None:
        """Wait for the turn, show progress to clients that can see it, and stop at the deadline."""
        now = self._clock()
        deadline = context.deadline if context.deadline is not None else float("inf")
        shows = context.writer.patient and self._settings.progress != "off"
        first = due = max(now, context.started_at + self._settings.progress_after_s) if shows else float("inf")
        while not await turn.wait(min(due, deadline) - now):
            now = self._clock()
            if turn.news() and now >= first:
                due = now
            if now >= deadline:
                raise WaitTimeout(
                    f"{turn.model} could not be had within {now - context.started_at:.0f} seconds "
                    "(gateway.queue.max_wait_s); try again, or use a model that is running",
                    retry_after_s=turn.estimate_s(),
                    model=turn.model,
                )
            if now >= due:
                await context.writer.heartbeat(turn.progress())
                now = self._clock()
                due = now + self._settings.progress_every_s

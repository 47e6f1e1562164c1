"""Switching: holds the lease of a loaded model while the request is answered, and restarts an engine found dead.

The orchestrator of the host (`scheduling/orchestrator.py`) carries out the switch while the request queues for the lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from hostler.adapters.canonical import LoadRequest, WebSocketRequest
from hostler.adapters.errors import AnswerTooLong, BackendError, BackendTimeout, BackendUnavailable
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.context import RequestContext, Target
from hostler.gateway.middleware.base import CallNext, RequestMiddleware
from hostler.supervisor.contract import PromptIdentity
from hostler.supervisor.scheduling.errors import EngineLost, revocation_error
from hostler.supervisor.scheduling.host import Host
from hostler.supervisor.scheduling.lease import Lease


class SwitchingMiddleware(RequestMiddleware):
    """Gives the attempt the engine's address for as long as the lease is held. Requests to unload a model end here.

    An engine found dead before anything was sent is restarted, once for each attempt: `EngineLost` has the request
    queued again. An answer that takes longer than its profile allows is cut off. `on_model_used` receives the name of
    each model that is used, `on_answered` the prompts that were answered where there is a choice of hosts.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Mapping[str, Host],
        on_model_used: Callable[[str], None],
        on_answered: Callable[[Target, PromptIdentity], None] = lambda target, prompt: None,
    ) -> None:
        super().__init__(app)
        self._hosts = hosts
        self._on_model_used = on_model_used
        self._on_answered = on_answered

    def dispatch(self, context: RequestContext, call_next: CallNext) -> Awaitable[None]:
        attempt = context.attempt
        assert attempt is not None
        target, lease = attempt.target, attempt.lease
        host = self._hosts.get(target.backend)
        if host is not None and lease is not None:
            return self._hold(context, host, lease, call_next)
        if host is not None and isinstance(context.request, LoadRequest) and context.request.kind == "unload":
            return self._unload(host, target.model, call_next)
        return call_next()

    async def _unload(self, host: Host, model: str, call_next: CallNext) -> None:
        await host.unload(model)
        await call_next()

    async def _hold(self, context: RequestContext, host: Host, lease: Lease, call_next: CallNext) -> None:
        attempt = context.current
        address = attempt.address = lease.address()
        try:
            self._on_model_used(lease.model)
            limits = attempt.target.limits
            if limits is None or limits.max_answer_s is None:
                await call_next()
            else:
                await _within(limits.max_answer_s, lease.model, call_next)
            # The time of a connection says nothing about that of answers.
            if not isinstance(context.request, WebSocketRequest):
                lease.report_answer(attempt.usage)
                if context.prompt is not None and len(context.candidates) > 1:
                    self._on_answered(attempt.target, context.prompt)
        except BackendError as error:
            if lease.revoked is not None:
                raise revocation_error(lease.model, lease.revoked) from error
            if isinstance(error, BackendTimeout):
                lease.report_timeout()
            if not isinstance(error, BackendUnavailable):
                raise
            # The engine died while it was idle and its supervisor has not noticed: nothing was sent, so a restart is
            # free. A connect timeout means that the machine is gone.
            if error.timed_out or context.writer.committed or attempt.restarts:
                raise
            attempt.restarts += 1
            host.engine_lost(address)
            raise EngineLost(error.message, backend=error.backend) from error
        finally:
            lease.release()


async def _within(seconds: float, model: str, call_next: CallNext) -> None:
    """Cut an answer off that takes too long: others may be waiting for its slot, or for another model."""
    try:
        async with asyncio.timeout(seconds) as limit:
            await call_next()
    except TimeoutError:
        if not limit.expired():
            raise
        raise AnswerTooLong(
            f"{model} did not finish its answer within {seconds:g} seconds (max_answer_s of its profile)", model=model
        ) from None

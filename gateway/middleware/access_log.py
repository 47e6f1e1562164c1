"""One log line and one event for every request, however it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from hostler.adapters.errors import BackendRejected, GatewayError, RequestCancelled, ShuttingDown
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.context import DRAIN_EXPIRED, Attempt, RequestContext
from hostler.gateway.events import AttemptOutcome, Bus, HopOutcome, RequestFinished
from hostler.gateway.middleware.base import CallNext, RequestMiddleware


class AccessLogMiddleware(RequestMiddleware):
    """Publishes a `RequestFinished` when a request has ended, and passes it to `log`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        bus: Bus,
        log: Callable[[RequestFinished], None],
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(app)
        self._bus = bus
        self._log = log
        self._clock = clock
        self._wall = wall

    async def dispatch(self, context: RequestContext, call_next: CallNext) -> None:
        status, code = 0, ""
        try:
            await call_next()
            context.outcome = "ok"
        except asyncio.CancelledError:
            ending = context.cancel_reason or ShuttingDown(DRAIN_EXPIRED)
            if isinstance(ending, ShuttingDown):
                context.outcome = "broken" if context.writer.committed else "failed"
                context.reason = ending.log_message
            else:
                context.outcome = "cancelled" if isinstance(ending, RequestCancelled) else "client_disconnected"
            status, code = ending.status, ending.code
            raise
        except GatewayError as error:
            context.outcome = "broken" if context.writer.committed else "failed"
            status, code = _status_sent(context, error), error.code
            context.reason = error.log_message
            raise
        except Exception as error:
            context.outcome = "broken" if context.writer.committed else "failed"
            status, code = 500, GatewayError.code
            context.reason = f"{type(error).__name__} in the gateway"
            raise
        finally:
            self._record(context, status or context.writer.status, code)

    def _record(self, context: RequestContext, status: int, code: str) -> None:
        seconds = self._clock() - context.started_at
        attempt, (queue_s, switch_s) = context.attempt, context.waits
        usage, first = (None, None) if attempt is None else (attempt.usage, attempt.first_token_at)
        event = RequestFinished(
            id=context.id,
            at=self._wall(),
            protocol=context.adapter.name,
            operation=context.operation.name,
            client=context.client.name,
            outcome=context.outcome,
            status=status,
            seconds=seconds,
            model=context.model,
            requested_model=context.requested_model,
            backend=attempt.target.backend if attempt else None,
            hop=attempt.hop if attempt else 0,
            reason=context.reason,
            code=code,
            queue_s=queue_s,
            switch_s=switch_s,
            first_token_s=None if first is None else first - context.started_at,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            cached_tokens=usage.cached_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            streamed=context.writer.streaming,
            attempts=(*map(_attempt_outcome, context.attempts),),
            failed_hops=(*(HopOutcome(backend=backend, reason=why) for backend, why in context.failed_hops),)
            if context.failed_hops
            else (),
            cost=context.cost,
        )
        self._bus.publish(event)
        self._log(event)


def _attempt_outcome(attempt: Attempt) -> AttemptOutcome:
    return AttemptOutcome(backend=attempt.target.backend, outcome=attempt.outcome, seconds=attempt.seconds)


def _status_sent(context: RequestContext, error: GatewayError) -> int:
    """The status that the client receives: protocols map some errors to their own. After the answer has started it is the
    error's, since the 200 that was sent would hide it."""
    if context.writer.started:
        return error.backend_status if isinstance(error, BackendRejected) else error.status
    return context.adapter.error_response(error, context.operation).status

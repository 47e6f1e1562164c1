"""The clock and the record: one log line and one event for every request, whatever becomes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from hostler.adapters.errors import BackendRejected, Cancelled, GatewayError, Stopping
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.context import CUT_OFF, Attempt, Exchange
from hostler.gateway.events import AttemptMade, Bus, HopPassed, RequestFinished
from hostler.gateway.middleware.base import CallNext, Layer


class Observe(Layer):
    """Publishes a `RequestFinished` when the request has ended, and has `log` write it down."""

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

    async def dispatch(self, exchange: Exchange, call_next: CallNext) -> None:
        status, code = 0, ""
        try:
            await call_next()
            exchange.outcome = "ok"
        except asyncio.CancelledError:
            ending = exchange.ending or Stopping(CUT_OFF)
            if isinstance(ending, Stopping):
                exchange.outcome = "broken" if exchange.reply.committed else "failed"
                exchange.reason = ending.message
            else:
                exchange.outcome = "cancelled" if isinstance(ending, Cancelled) else "left"
            status, code = ending.status, ending.code
            raise
        except GatewayError as error:
            exchange.outcome = "broken" if exchange.reply.committed else "failed"
            status, code = _told(exchange, error), error.code
            exchange.reason = error.message
            raise
        except Exception as error:
            exchange.outcome = "broken" if exchange.reply.committed else "failed"
            status, code = 500, GatewayError.code
            exchange.reason = f"{type(error).__name__} in the gateway"
            raise
        finally:
            self._record(exchange, status or exchange.reply.status, code)

    def _record(self, exchange: Exchange, status: int, code: str) -> None:
        seconds = self._clock() - exchange.started_at
        usage = exchange.usage
        first = exchange.first_word_at
        event = RequestFinished(
            id=exchange.id,
            at=self._wall(),
            protocol=exchange.adapter.name,
            operation=exchange.operation.name,
            client=exchange.client.name,
            outcome=exchange.outcome,
            status=status,
            seconds=seconds,
            model=exchange.model,
            asked=exchange.asked,
            backend=exchange.target.backend if exchange.target else None,
            hop=exchange.hop,
            reason=exchange.reason,
            code=code,
            queue_s=exchange.queue_s,
            switch_s=exchange.switch_s,
            first_word_s=None if first is None else first - exchange.started_at,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            cached_tokens=usage.cached_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            streamed=exchange.reply.patient,
            attempts=(*map(_made, exchange.attempts),),
            passed=(*(HopPassed(backend=backend, why=why) for backend, why in exchange.passed),)
            if exchange.passed
            else (),
            cost=exchange.cost,
        )
        self._bus.publish(event)
        self._log(event)


def _made(attempt: Attempt) -> AttemptMade:
    return AttemptMade(backend=attempt.target.backend, outcome=attempt.outcome, seconds=attempt.seconds)


def _told(exchange: Exchange, error: GatewayError) -> int:
    """The status that the client is told: protocols have their own for some errors. Where the answer has begun it is
    the error's, since 200 says nothing of it."""
    if exchange.reply.started:
        return error.answer_status if isinstance(error, BackendRejected) else error.status
    return exchange.adapter.refuse(error, exchange.operation).status

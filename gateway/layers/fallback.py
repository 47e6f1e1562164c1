"""One candidate after the other, until one answers. After the first word nobody else may."""

from __future__ import annotations

from collections.abc import Callable

from hostler.adapters.errors import BackendError, BackendRejected, Busy, GatewayError, ModelUnavailable, Waited
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.exchange import Attempt, Exchange, Target
from hostler.gateway.layers.base import CallNext, Layer

#: Statuses that say "this request is wrong" rather than "I cannot": another backend would say the same.
_CLIENTS_FAULT = frozenset({400, 404, 405, 409, 411, 413, 414, 415, 422, 431})


class Fallback(Layer):
    """Tries the candidates in order. A failure before the first word goes to the next one."""

    def __init__(self, app: ASGIApp, *, clock: Callable[[], float]) -> None:
        super().__init__(app)
        self._clock = clock

    async def dispatch(self, exchange: Exchange, call_next: CallNext) -> None:
        failures: list[tuple[Target, GatewayError]] = []
        if not exchange.candidates:
            raise ModelUnavailable(f"no backend of the chain can run {exchange.model}", model=exchange.model)
        for hop, target in enumerate(exchange.candidates):
            exchange.hop, exchange.target, exchange.address = hop, target, None
            exchange.reason = f"after {failures[-1][0].backend}: {failures[-1][1].message}" if failures else ""
            began = self._clock()
            try:
                await call_next()
            except GatewayError as error:
                exchange.attempts.append(Attempt(target=target, seconds=self._clock() - began, outcome=error.code))
                if exchange.reply.committed or not _another_may_do_better(error):
                    raise
                failures.append((target, error))
            else:
                exchange.attempts.append(Attempt(target=target, seconds=self._clock() - began))
                return
        if len(failures) == 1:
            raise failures[0][1]
        raise _all_failed(exchange, failures)


def _another_may_do_better(error: GatewayError) -> bool:
    if isinstance(error, BackendRejected):
        return error.answer_status not in _CLIENTS_FAULT
    return isinstance(error, BackendError | ModelUnavailable | Busy | Waited)


def _all_failed(exchange: Exchange, failures: list[tuple[Target, GatewayError]]) -> GatewayError:
    """Every hop failed: what each said. If all are merely busy, that is what the client is told."""
    waits = [error.retry_after_s for _, error in failures if error.retry_after_s is not None]
    retry_after_s = min(waits) if waits else None
    reasons = "; ".join(f"{target.backend}: {error.message}" for target, error in failures)
    if all(isinstance(error, Busy) for _, error in failures):
        return Busy(reasons, retry_after_s=retry_after_s, model=exchange.model)
    return ModelUnavailable(
        f"no backend could answer for {exchange.model}: {reasons}", retry_after_s=retry_after_s, model=exchange.model
    )

"""How long a request may wait in all. Who waits for which model is the scheduler's business."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from hostler.gateway.asgi import ASGIApp
from hostler.gateway.config import QueueSettings
from hostler.gateway.context import RequestContext
from hostler.gateway.middleware.base import CallNext, RequestMiddleware


class QueueingMiddleware(RequestMiddleware):
    """Sets the moment after which the request waits no longer: one limit over all hops, not one for each."""

    def __init__(self, app: ASGIApp, *, settings: QueueSettings, clock: Callable[[], float]) -> None:
        super().__init__(app)
        self._settings = settings
        self._clock = clock

    def dispatch(self, context: RequestContext, call_next: CallNext) -> Awaitable[None]:
        context.deadline = self._clock() + self._settings.max_wait_s
        return call_next()

"""Probes are answered here, from the catalogue's snapshot: they never queue, never switch, never touch an engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from hostler.adapters.base import Adapter
from hostler.adapters.model_list import ModelList
from hostler.adapters.types import ModelInfoRequest
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.context import RequestContext
from hostler.gateway.events import Bus, EngineChanged, HostChanged, Subscription
from hostler.gateway.middleware.base import CallNext, RequestMiddleware

#: Proxies give up on streams that are silent for much longer than this, in seconds.
_PING_S = 15.0
_PING = b":\n\n"

#: Whoever reads more slowly than models change misses steps in between, never the last one.
_REMEMBERED = 16


class ModelInfoMiddleware(RequestMiddleware):
    """Answers probes; everything else passes. One that asks for what changes is told of it until `bus` is closed."""

    def __init__(self, app: ASGIApp, *, listing: Callable[[], ModelList], bus: Bus, ping_s: float = _PING_S) -> None:
        super().__init__(app)
        self._listing = listing
        self._bus = bus
        self._ping_s = ping_s

    def dispatch(self, context: RequestContext, call_next: CallNext) -> Awaitable[None]:
        request = context.request
        return self._answer(context, request) if isinstance(request, ModelInfoRequest) else call_next()

    async def _answer(self, context: RequestContext, request: ModelInfoRequest) -> None:
        adapter = context.adapter
        context.model = request.model
        if adapter.is_subscription(request):
            await self._watch(context, adapter)
        else:
            await context.writer.respond(adapter.model_info(request, self._listing()))

    async def _watch(self, context: RequestContext, adapter: Adapter) -> None:
        writer = context.writer
        subscription = self._bus.subscribe(_REMEMBERED)
        try:
            told = self._listing()
            await writer.tell(adapter.change_events(None, told), last=context.request.origin.method == "HEAD")
            while not writer.ended:
                with anyio.move_on_after(self._ping_s) as waited:
                    await _moved(subscription)
                if waited.cancelled_caught:
                    await writer.tell(_PING)
                    continue
                before, told = told, self._listing()
                news = adapter.change_events(before, told)
                if news or subscription.closed:
                    await writer.tell(news, last=subscription.closed)
        finally:
            self._bus.unsubscribe(subscription)


async def _moved(subscription: Subscription) -> None:
    """Wait until a model or a host may have changed, or until there will be no more of it."""
    async for event in subscription:
        if isinstance(event, EngineChanged | HostChanged):
            return

"""Model lists and health checks, answered from the catalog: they never queue, switch or reach an engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from hostler.adapters.base import Adapter, WireResponse
from hostler.adapters.canonical import ModelInfoRequest
from hostler.adapters.errors import ModelNotFound
from hostler.adapters.model_list import ModelList
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.context import RequestContext
from hostler.gateway.events import Bus, EngineChanged, HostChanged, ModelsChanged, Subscription
from hostler.gateway.middleware.base import CallNext, RequestMiddleware

#: Proxies drop streams that are silent for much longer than this, in seconds.
_PING_S = 15.0
_PING = b":\n\n"

#: Events buffered for a subscriber; a slow one misses intermediate states, never the last one.
_BUFFERED = 16


class ModelInfoMiddleware(RequestMiddleware):
    """Answers `ModelInfoRequest`s and passes on everything else. Subscriptions get changes until `bus` is closed.

    `refresh` asks backends for new models where one is unknown, and returns whether any was asked.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        listing: Callable[[], ModelList],
        refresh: Callable[[], Awaitable[bool]],
        bus: Bus,
        ping_s: float = _PING_S,
    ) -> None:
        super().__init__(app)
        self._listing = listing
        self._refresh = refresh
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
            await context.writer.respond(await self._response(context, request))

    async def _response(self, context: RequestContext, request: ModelInfoRequest) -> WireResponse:
        try:
            return context.adapter.model_info(request, self._allowed(context))
        except ModelNotFound:
            if not await self._refresh():
                raise
        return context.adapter.model_info(request, self._allowed(context))

    def _allowed(self, context: RequestContext) -> ModelList:
        """The models that the client's key may use."""
        listing, rules = self._listing(), context.client.rules
        return listing if rules is None or not rules.models else listing.only(rules.allows_model)

    async def _watch(self, context: RequestContext, adapter: Adapter) -> None:
        writer = context.writer
        subscription = self._bus.subscribe(_BUFFERED)
        try:
            sent = self._allowed(context)
            await writer.write_event(adapter.change_events(None, sent), last=context.request.origin.method == "HEAD")
            while not writer.ended:
                with anyio.move_on_after(self._ping_s) as timeout:
                    await _changed(subscription)
                if timeout.cancelled_caught:
                    await writer.write_event(_PING)
                    continue
                previous, sent = sent, self._allowed(context)
                changes = adapter.change_events(previous, sent)
                if changes or subscription.closed:
                    await writer.write_event(changes, last=subscription.closed)
        finally:
            self._bus.unsubscribe(subscription)


async def _changed(subscription: Subscription) -> None:
    """Wait until a model or a host may have changed, or the subscription was closed."""
    async for event in subscription:
        if isinstance(event, EngineChanged | HostChanged | ModelsChanged):
            return

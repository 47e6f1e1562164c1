"""Probes are answered here, from the catalogue's snapshot: they never queue, never switch, never touch an engine."""

from __future__ import annotations

from collections.abc import Callable

from hostler.adapters.canonical import Probe as ProbeRequest
from hostler.adapters.listing import Listing
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.exchange import Exchange
from hostler.gateway.layers.base import CallNext, Layer


class Probe(Layer):
    """Answers probes; everything else passes."""

    def __init__(self, app: ASGIApp, *, listing: Callable[[], Listing]) -> None:
        super().__init__(app)
        self._listing = listing

    async def dispatch(self, exchange: Exchange, call_next: CallNext) -> None:
        if not isinstance(exchange.request, ProbeRequest):
            await call_next()
            return
        exchange.model = exchange.request.model
        await exchange.reply.respond(exchange.adapter.answer(exchange.request, self._listing()))

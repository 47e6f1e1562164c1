"""Which model is meant, and which targets could answer for it."""

from __future__ import annotations

from collections.abc import Callable

from hostler.gateway.asgi import ASGIApp
from hostler.gateway.catalog import Placement
from hostler.gateway.exchange import Exchange, Target
from hostler.gateway.layers.base import CallNext, Layer

Find = Callable[[str | None], Placement]


class Detect(Layer):
    """Turns the name in the request into candidates. `find` raises `ModelNotFound` with the names that do exist."""

    def __init__(self, app: ASGIApp, *, find: Find) -> None:
        super().__init__(app)
        self._find = find

    async def dispatch(self, exchange: Exchange, call_next: CallNext) -> None:
        placement = self._find(exchange.request.model)
        exchange.model = placement.model
        exchange.candidates = tuple(
            Target(backend=place.backend, model=placement.model, name_there=place.name_there)
            for place in placement.places
        )
        await call_next()

"""What is asked about which models there are is carried out here: it never queues, never switches, never starts an engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from hostler.adapters.errors import Forbidden, NotFound
from hostler.adapters.types import (
    ARRANGEMENTS,
    AnswerHead,
    Arrangement,
    Chunk,
    Copy,
    Create,
    Delete,
    Find,
    Pull,
    Stage,
)
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.context import Exchange
from hostler.gateway.middleware.base import CallNext, Layer

Tell = Callable[[Stage], Awaitable[None]]


class Arranges(Protocol):
    """Who carries it out; `tell` hears of every step. Each raises a `GatewayError`."""

    def here(self, model: str) -> bool: ...

    async def pull(self, order: Pull, tell: Tell) -> None: ...

    async def copy(self, order: Copy) -> None: ...

    async def create(self, order: Create, tell: Tell) -> None: ...

    async def delete(self, order: Delete) -> None: ...

    async def has_file(self, digest: str) -> bool: ...


class Arrange(Layer):
    """Carries arrangements out; everything else passes. Whatever changes something takes a key that may operate."""

    def __init__(self, app: ASGIApp, *, librarian: Arranges) -> None:
        super().__init__(app)
        self._librarian = librarian

    def dispatch(self, exchange: Exchange, call_next: CallNext) -> Awaitable[None]:
        order = exchange.request
        return self._carry_out(exchange, order) if isinstance(order, ARRANGEMENTS) else call_next()

    async def _carry_out(self, exchange: Exchange, order: Arrangement) -> None:
        reply = exchange.reply
        reply.begin(AnswerHead())

        async def tell(stage: Stage) -> None:
            await reply.write(Chunk(stage=stage))

        if isinstance(order, Find):
            if not await self._librarian.has_file(order.digest):
                raise NotFound(f'blob "{order.digest}" not found')
        elif isinstance(order, Pull):
            if "operate" not in exchange.client.scopes and not self._librarian.here(order.model):
                raise Forbidden("having a model fetched needs a key with the scope operate")
            await self._librarian.pull(order, tell)
        elif isinstance(order, Copy):
            await self._librarian.copy(order)
        elif isinstance(order, Create):
            await self._librarian.create(order, tell)
        else:
            await self._librarian.delete(order)
        await reply.end()

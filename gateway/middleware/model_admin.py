"""What is asked about which models there are is carried out here: it never queues, never switches, never starts an engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from hostler.adapters.errors import Forbidden, NotFound
from hostler.adapters.types import (
    MODEL_OPERATIONS,
    Chunk,
    CopyModel,
    CreateModel,
    DeleteModel,
    FindBlob,
    ModelOperation,
    ProgressStep,
    PullModel,
    ResponseHead,
)
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.context import RequestContext
from hostler.gateway.middleware.base import CallNext, RequestMiddleware

ReportStep = Callable[[ProgressStep], Awaitable[None]]


class ModelOperations(Protocol):
    """Who carries it out; `tell` hears of every step. Each raises a `GatewayError`."""

    def here(self, model: str) -> bool: ...

    async def pull(self, order: PullModel, tell: ReportStep) -> None: ...

    async def copy(self, order: CopyModel) -> None: ...

    async def create(self, order: CreateModel, tell: ReportStep) -> None: ...

    async def delete(self, order: DeleteModel) -> None: ...

    async def has_file(self, digest: str) -> bool: ...


class ModelAdminMiddleware(RequestMiddleware):
    """Carries arrangements out; everything else passes. Whatever changes something takes a key that may operate."""

    def __init__(self, app: ASGIApp, *, model_admin: ModelOperations) -> None:
        super().__init__(app)
        self._librarian = model_admin

    def dispatch(self, context: RequestContext, call_next: CallNext) -> Awaitable[None]:
        order = context.request
        return self._carry_out(context, order) if isinstance(order, MODEL_OPERATIONS) else call_next()

    async def _carry_out(self, context: RequestContext, order: ModelOperation) -> None:
        writer = context.writer
        writer.begin(ResponseHead())

        async def tell(stage: ProgressStep) -> None:
            await writer.write(Chunk(stage=stage))

        if isinstance(order, FindBlob):
            if not await self._librarian.has_file(order.digest):
                raise NotFound(f'blob "{order.digest}" not found')
        elif isinstance(order, PullModel):
            if "operate" not in context.client.scopes and not self._librarian.here(order.model):
                raise Forbidden("having a model fetched needs a key with the scope operate")
            await self._librarian.pull(order, tell)
        elif isinstance(order, CopyModel):
            await self._librarian.copy(order)
        elif isinstance(order, CreateModel):
            await self._librarian.create(order, tell)
        else:
            await self._librarian.delete(order)
        await writer.end()

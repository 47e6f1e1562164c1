"""Model administration requests: pull, copy, create, delete. They never queue or switch, and start no engine."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from hostler.adapters.canonical import (
    MODEL_OPERATIONS,
    Chunk,
    CopyModel,
    CreateModel,
    DeleteModel,
    FindBlob,
    ModelOperation,
    ProgressStep,
    PullModel,
    ReportStep,
    ResponseHead,
)
from hostler.adapters.errors import Forbidden, NotFound
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.context import RequestContext
from hostler.gateway.middleware.base import CallNext, RequestMiddleware


class ModelOperations(Protocol):
    """Performs the operations; `report` receives every step. All raise `GatewayError`."""

    def is_present(self, model: str) -> bool: ...

    async def pull(self, operation: PullModel, report: ReportStep) -> None: ...

    async def copy(self, operation: CopyModel) -> None: ...

    async def create(self, operation: CreateModel, report: ReportStep) -> None: ...

    async def delete(self, operation: DeleteModel) -> None: ...

    async def has_file(self, digest: str) -> bool: ...


class ModelAdminMiddleware(RequestMiddleware):
    """Performs model operations and passes on everything else. A pull that fetches needs the scope operate."""

    def __init__(self, app: ASGIApp, *, model_admin: ModelOperations) -> None:
        super().__init__(app)
        self._model_admin = model_admin

    def dispatch(self, context: RequestContext, call_next: CallNext) -> Awaitable[None]:
        operation = context.request
        return self._perform(context, operation) if isinstance(operation, MODEL_OPERATIONS) else call_next()

    async def _perform(self, context: RequestContext, operation: ModelOperation) -> None:
        writer = context.writer
        writer.begin(ResponseHead())

        async def report(step: ProgressStep) -> None:
            await writer.write(Chunk(step=step))

        if isinstance(operation, FindBlob):
            if not await self._model_admin.has_file(operation.digest):
                raise NotFound(f'blob "{operation.digest}" not found')
        elif isinstance(operation, PullModel):
            if "operate" not in context.client.scopes and not self._model_admin.is_present(operation.model):
                raise Forbidden("fetching a model requires a key with the scope operate")
            await self._model_admin.pull(operation, report)
        elif isinstance(operation, CopyModel):
            await self._model_admin.copy(operation)
        elif isinstance(operation, CreateModel):
            await self._model_admin.create(operation, report)
        else:
            await self._model_admin.delete(operation)
        await writer.end()

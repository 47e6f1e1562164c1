"""What the APIs of batches share, whichever protocol they are of: their routes, and how a batch is cancelled."""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from hostler.adapters.base import Adapter, Operation
from hostler.gateway.asgi import RouteMatch
from hostler.gateway.batches.http import BatchHandler, OtherGateways, PassOnRoutes, UploadLimit, endpoint
from hostler.gateway.batches.records import Batch, BatchStatus
from hostler.gateway.batches.store import BatchStore


class BatchApi:
    """An API of batches, whose errors are the adapter's. `notify` is called when a batch was created or is to be cancelled."""

    def __init__(
        self, store: BatchStore, adapter: Adapter, notify: Callable[[], None], pass_on: PassOnRoutes, *, max_file: int,
        uploads: UploadLimit, gateways: OtherGateways | None = None,
    ) -> None:  # fmt: skip
        self._store = store
        self._adapter = adapter
        self._notify = notify
        self._pass_on = pass_on
        self._max_file = max_file
        self._uploads = uploads
        self._gateways = gateways
        self._own = "" if gateways is None else gateways.own

    def _route(
        self, name: str, path: str, method: str, handler: BatchHandler, media_types: tuple[str, ...] = ("",)
    ) -> RouteMatch:
        operation = Operation(name=name, path=path, methods=(method,), writes=True, media_types=media_types)
        app = endpoint(self._adapter, operation, handler, self._pass_on, self._gateways)
        return RouteMatch(operation=operation, app=app, adapter=self._adapter)

    async def _cancelled(self, batch: Batch, while_in: Collection[BatchStatus]) -> Batch:
        """The batch, cancelled if it is in one of these states."""
        now = self._store.wall()
        changed = await self._store.update(
            batch.id,
            lambda current: (
                msgspec.structs.replace(current, status="cancelling", cancelling_at=now)
                if current.status in while_in
                else None
            ),
        )
        self._notify()
        return changed or batch

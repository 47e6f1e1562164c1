"""Anthropic's `/v1/messages/batches`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, Final

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from hostler.adapters.base import Adapter
from hostler.adapters.errors import BadRequest, NotFound, printable
from hostler.gateway.asgi import CLIENT_KEY, RouteMatch
from hostler.gateway.batches.api import BatchApi
from hostler.gateway.batches.http import (
    FORWARDED_FROM,
    MAX_FILE,
    OtherGateways,
    PassOn,
    PassOnRoutes,
    UploadLimit,
    look_elsewhere,
    owner_of,
    reply,
)
from hostler.gateway.batches.ids import MESSAGE_BATCH_PREFIX, new_id
from hostler.gateway.batches.input_file import read_requests
from hostler.gateway.batches.lists import ListRoute
from hostler.gateway.batches.openai_api import WINDOW_S
from hostler.gateway.batches.records import Batch, Counts, ItemResult
from hostler.gateway.batches.store import BatchStore
from hostler.gateway.context import Client
from hostler.gateway.request_body import read_body

_ENDPOINT: Final = "/v1/messages"


def _list(data: list[msgspec.Raw], first: str | None, last: str | None, more: bool) -> dict[str, Any]:
    return {"data": data, "has_more": more, "first_id": first, "last_id": last}


_LIST: Final = ListRoute(_list, default=20, after="after_id", before="before_id")


class AnthropicBatches(BatchApi):
    """Message batches."""

    def __init__(
        self, store: BatchStore, adapter: Adapter, notify: Callable[[], None], pass_on: PassOnRoutes, *, max_file: int,
        uploads: UploadLimit, max_requests: int, gateways: OtherGateways | None = None,
    ) -> None:  # fmt: skip
        super().__init__(store, adapter, notify, pass_on, max_file=max_file, uploads=uploads, gateways=gateways)
        self._max_requests = max_requests

    def routes(self) -> list[RouteMatch]:
        """The routes, which pass on what they do not know."""
        path = "/v1/messages/batches"
        return [
            self._route("create_batch", path, "POST", self._create),
            self._route("batches", path, "GET", self._list),
            self._route("batch", f"{path}/{{id}}", "GET", self._get),
            self._route("delete_batch", f"{path}/{{id}}", "DELETE", self._delete),
            self._route("cancel_batch", f"{path}/{{id}}/cancel", "POST", self._cancel),
            self._route("batch_results", f"{path}/{{id}}/results", "GET", self._results),
        ]

    async def _create(self, request: Request) -> Response:
        with self._uploads.entered(request):
            return await self._create_of_body(request)

    async def _create_of_body(self, request: Request) -> Response:
        content = await read_body(request, self._max_file, MAX_FILE)
        batch_id = new_id(MESSAGE_BATCH_PREFIX, self._own, now := self._store.wall())
        items = await anyio.to_thread.run_sync(
            lambda: read_requests(content, batch=batch_id, max_requests=self._max_requests)
        )
        client: Client = request.scope[CLIENT_KEY]
        batch = Batch(
            id=batch_id, owner=owner_of(request), client=client.name, protocol="anthropic", endpoint=_ENDPOINT,
            created_at=now, expires_at=now + WINDOW_S, status="in_progress", in_progress_at=now, total=len(items),
        )  # fmt: skip
        await self._store.add_batch(batch, items)
        self._notify()
        return reply(_batch(batch, Counts(processing=len(items)), request))

    async def _list(self, request: Request) -> Response:
        batches = await self._store.batches(owner_of(request), "anthropic")

        async def show(batch: Batch) -> dict[str, Any]:
            return _batch(batch, await self._store.counts(batch.id), request)

        return await _LIST.answer(request, batches, show, gateways=self._gateways, pass_on=False)

    async def _get(self, request: Request) -> Response:
        batch = await self._find(request)
        return reply(_batch(batch, await self._store.counts(batch.id), request))

    async def _delete(self, request: Request) -> Response:
        batch = await self._find(request)
        if batch.active:
            raise BadRequest("a batch can be deleted once it has ended; cancel it first")
        await self._store.delete_batch(batch.id)
        return reply({"id": batch.id, "type": "message_batch_deleted"})

    async def _cancel(self, request: Request) -> Response:
        batch = await self._cancelled(await self._find(request), {"in_progress"})
        return reply(_batch(batch, await self._store.counts(batch.id), request))

    async def _results(self, request: Request) -> Response:
        batch = await self._find(request)
        if batch.active:
            raise BadRequest(f"the batch {batch.id} is still in progress; its results can be read when it has ended")
        return StreamingResponse(self._lines(batch), media_type="application/x-jsonl")

    async def _lines(self, batch: Batch) -> AsyncIterator[bytes]:
        after = -1
        while found := await self._store.results(batch.id, ("succeeded", "errored", "cancelled", "expired"), after):
            after = found[-1][0]
            yield b"".join(_line(custom_id, result) for _, custom_id, result in found)

    async def _find(self, request: Request) -> Batch:
        batch_id = request.path_params["id"]
        if not batch_id.startswith(MESSAGE_BATCH_PREFIX):
            raise PassOn(await read_body(request, self._max_file, MAX_FILE))
        batch = await self._store.find_batch(owner_of(request), batch_id)
        if batch is None:
            look_elsewhere(self._gateways, batch_id, request)
            raise NotFound(f"no such batch: {printable(batch_id, 80)}")
        return batch


def _batch(batch: Batch, counts: Counts, request: Request) -> dict[str, Any]:
    status = "canceling" if batch.status == "cancelling" else "in_progress" if batch.active else "ended"
    results = None
    if not batch.active:
        asked = request.url.replace(path=request.scope.get("root_path", ""), query="")
        base = request.headers.get(FORWARDED_FROM) or str(asked).rstrip("/")
        results = f"{base}/v1/messages/batches/{batch.id}/results"
    return {
        "id": batch.id, "type": "message_batch", "processing_status": status,
        "request_counts": {
            "processing": counts.processing, "succeeded": counts.succeeded, "errored": counts.errored,
            "canceled": counts.cancelled, "expired": counts.expired,
        },
        "created_at": _moment(batch.created_at), "expires_at": _moment(batch.expires_at),
        "ended_at": _moment(batch.ended_at), "cancel_initiated_at": _moment(batch.cancelling_at), "archived_at": None,
        "results_url": results,
    }  # fmt: skip


def _line(custom_id: str, result: ItemResult) -> bytes:
    shown: dict[str, Any]
    if result.outcome == "succeeded":
        shown = {"type": "succeeded", "message": result.body}
    elif result.outcome == "errored":
        error = {"type": "error", "error": {"type": "api_error", "message": result.message}}
        shown = {"type": "errored", "error": result.body if result.status else error}
    else:
        shown = {"type": "canceled" if result.outcome == "cancelled" else "expired"}
    return msgspec.json.encode({"custom_id": custom_id, "result": shown}) + b"\n"


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, tz=UTC).isoformat().replace("+00:00", "Z")

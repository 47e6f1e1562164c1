"""OpenAI's `/v1/files` and `/v1/batches`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from hostler.adapters import multipart
from hostler.adapters.errors import BadRequest, NotFound, printable
from hostler.gateway.asgi import CLIENT_KEY, RouteMatch
from hostler.gateway.batches.api import BatchApi
from hostler.gateway.batches.http import (
    MAX_FILE,
    BatchHandler,
    PassOn,
    look_elsewhere,
    owner_of,
    reply,
)
from hostler.gateway.batches.ids import BATCH_PREFIX, FILE_PREFIX, new_id
from hostler.gateway.batches.input_file import ENDPOINTS
from hostler.gateway.batches.lists import ListRoute
from hostler.gateway.batches.records import Batch, Counts, ItemResult, StoredFile
from hostler.gateway.context import Client
from hostler.gateway.request_body import read_body

WINDOW_S: Final = 24 * 3600.0

#: Bytes of the body of a request that is not an upload.
_MAX_BODY: Final = 256 * 1024
_PURPOSE: Final = "batch"
_MAX_PAIRS, _MAX_KEY, _MAX_VALUE = 16, 64, 512


def _list(data: list[msgspec.Raw], first: str | None, last: str | None, more: bool) -> dict[str, Any]:
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}


_FILES: Final = ListRoute(_list, default=10_000, after="after", order="order")
_BATCHES: Final = ListRoute(_list, default=20, after="after")


class _Create(msgspec.Struct, frozen=True, kw_only=True):
    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: dict[str, str] | None = None


class OpenAIBatches(BatchApi):
    """Files for batches, and batches."""

    def routes(self) -> list[RouteMatch]:
        """The routes, which pass on what they do not know."""
        found: list[RouteMatch] = []

        def add(name: str, path: str, method: str, handler: BatchHandler, media_types: tuple[str, ...] = ("",)) -> None:
            found.extend(self._route(name, full, method, handler, media_types) for full in (f"/v1{path}", path))

        add("upload_file", "/files", "POST", self._upload, ("multipart/form-data",))
        add("files", "/files", "GET", self._list_files)
        add("file", "/files/{id}", "GET", self._get_file)
        add("delete_file", "/files/{id}", "DELETE", self._delete_file)
        add("file_content", "/files/{id}/content", "GET", self._content)
        add("create_batch", "/batches", "POST", self._create)
        add("batches", "/batches", "GET", self._list_batches)
        add("batch", "/batches/{id}", "GET", self._get_batch)
        add("cancel_batch", "/batches/{id}/cancel", "POST", self._cancel)
        return found

    # Files

    async def _upload(self, request: Request) -> Response:
        with self._uploads.entered(request):
            body = await read_body(request, self._max_file, MAX_FILE)
            media_type = request.headers.get("content-type", "")
            # Large files are searched for boundaries.
            filename, content, expiry_s = await anyio.to_thread.run_sync(self._form, body, media_type)
            now = self._store.wall()
            record = StoredFile(
                id=new_id(FILE_PREFIX, self._own, now), owner=owner_of(request), filename=filename, purpose=_PURPOSE,
                bytes=len(content), created_at=now, expires_at=now + expiry_s,
            )  # fmt: skip
            await self._store.add_file(record, content)
        return reply(_file(record))

    def _form(self, body: bytes, media_type: str) -> tuple[str, bytes, float]:
        """The name and content of the uploaded file, and how long it is kept."""
        if multipart.field(body, media_type, "purpose") != _PURPOSE:
            raise PassOn(body)
        upload = multipart.file(body, media_type, "file")
        if upload is None:
            raise BadRequest("the form has no file", param="file")
        return *upload, self._expiry_s(body, media_type)

    def _expiry_s(self, body: bytes, media_type: str) -> float:
        """How long the file is kept: as long as the client says, but not longer than anything."""
        given = multipart.field(body, media_type, "expires_after[seconds]")
        if given is None:
            return self._store.max_age_s
        if not given.isascii() or not given.isdecimal() or int(given) < 1:
            raise BadRequest("expires_after[seconds] must be a positive integer", param="expires_after")
        return min(float(given), self._store.max_age_s)

    async def _list_files(self, request: Request) -> Response:
        own = await self._store.files(owner_of(request))
        if "anthropic-version" in request.headers:
            raise PassOn
        wanted = request.query_params.get("purpose")
        files = [each for each in own if wanted in (None, "", each.purpose)]

        async def show(record: StoredFile) -> dict[str, Any]:
            return _file(record)

        pass_on = self._pass_on.expected and not own
        return await _FILES.answer(request, files, show, gateways=self._gateways, pass_on=pass_on)

    async def _get_file(self, request: Request) -> Response:
        return reply(_file(await self._file(request)))

    async def _delete_file(self, request: Request) -> Response:
        record = await self._file(request)
        await self._store.delete_file(record)
        return reply({"id": record.id, "object": "file", "deleted": True})

    async def _content(self, request: Request) -> Response:
        record = await self._file(request)
        if record.source is None:
            return Response(await self._store.content(record.id) or b"", media_type="application/octet-stream")
        return StreamingResponse(self._lines(record, record.source), media_type="application/octet-stream")

    async def _lines(self, record: StoredFile, batch_id: str) -> AsyncIterator[bytes]:
        after = -1
        while found := await self._store.results(batch_id, record.outcomes, after):
            after = found[-1][0]
            yield b"".join(_line(batch_id, *each) for each in found)

    async def _file(self, request: Request) -> StoredFile:
        file_id = request.path_params["id"]
        if not file_id.startswith(FILE_PREFIX):
            raise PassOn
        record = await self._store.find_file(owner_of(request), file_id)
        if record is None:
            look_elsewhere(self._gateways, file_id, request)
            raise NotFound(f"no such file: {printable(file_id, 80)}")
        return record

    # Batches

    async def _create(self, request: Request) -> Response:
        body = await read_body(request, _MAX_BODY)
        try:
            wanted = msgspec.json.decode(body, type=_Create)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(
                f"expected an object with input_file_id, endpoint and completion_window: {error}"
            ) from error
        if not wanted.input_file_id.startswith(FILE_PREFIX):
            raise PassOn(body)
        if wanted.endpoint not in ENDPOINTS:
            raise BadRequest(f"endpoint must be one of {', '.join(ENDPOINTS)}", param="endpoint")
        if wanted.completion_window != "24h":
            raise BadRequest('completion_window must be "24h"', param="completion_window")
        _check_metadata(wanted.metadata or {})
        owner, now = owner_of(request), self._store.wall()
        file = await self._store.find_file(owner, wanted.input_file_id)
        if file is None:
            look_elsewhere(self._gateways, wanted.input_file_id, request, body)
        if file is None or file.purpose != _PURPOSE:
            raise BadRequest(f"no such file: {printable(wanted.input_file_id, 80)}", param="input_file_id")
        client: Client = request.scope[CLIENT_KEY]
        batch = Batch(
            id=new_id(BATCH_PREFIX, self._own, now), owner=owner, client=client.name, protocol="openai",
            endpoint=wanted.endpoint, created_at=now, expires_at=now + WINDOW_S, input_file=file.id,
            metadata=wanted.metadata,
        )  # fmt: skip
        await self._store.add_batch(batch)
        self._notify()
        return reply(_batch(batch, Counts()))

    async def _list_batches(self, request: Request) -> Response:
        batches = await self._store.batches(owner_of(request), "openai")

        async def show(batch: Batch) -> dict[str, Any]:
            return _batch(batch, await self._store.counts(batch.id))

        pass_on = self._pass_on.expected and not batches
        return await _BATCHES.answer(request, batches, show, gateways=self._gateways, pass_on=pass_on)

    async def _get_batch(self, request: Request) -> Response:
        batch = await self._find(request)
        return reply(_batch(batch, await self._store.counts(batch.id)))

    async def _cancel(self, request: Request) -> Response:
        batch = await self._find(request)
        if not batch.active:
            raise BadRequest(f"a batch that is {batch.status} cannot be cancelled")
        batch = await self._cancelled(batch, {"validating", "in_progress"})
        return reply(_batch(batch, await self._store.counts(batch.id)))

    async def _find(self, request: Request) -> Batch:
        batch_id = request.path_params["id"]
        if not batch_id.startswith(BATCH_PREFIX):
            raise PassOn
        batch = await self._store.find_batch(owner_of(request), batch_id)
        if batch is None:
            look_elsewhere(self._gateways, batch_id, request)
        if batch is None or batch.protocol != "openai":
            raise NotFound(f"no such batch: {printable(batch_id, 80)}")
        return batch


def _check_metadata(metadata: Mapping[str, str]) -> None:
    """Raise `BadRequest` beyond OpenAI's limits."""
    if len(metadata) > _MAX_PAIRS:
        raise BadRequest(f"metadata has {_MAX_PAIRS} pairs at most", param="metadata")
    if any(len(key) > _MAX_KEY or len(value) > _MAX_VALUE for key, value in metadata.items()):
        raise BadRequest(f"keys of metadata have {_MAX_KEY} characters at most, values {_MAX_VALUE}", param="metadata")


def _file(record: StoredFile) -> dict[str, Any]:
    return {
        "id": record.id, "object": "file", "bytes": record.bytes, "created_at": int(record.created_at),
        "expires_at": _whole(record.expires_at), "filename": record.filename, "purpose": record.purpose,
        "status": "processed", "status_details": None,
    }  # fmt: skip


def _batch(batch: Batch, counts: Counts) -> dict[str, Any]:
    errors = [{"code": e.code, "message": e.message, "param": e.param, "line": e.line} for e in batch.errors]
    ended: dict[str, int | None] = {f"{status}_at": None for status in ("completed", "failed", "expired", "cancelled")}
    if batch.ended_at is not None:
        ended[f"{batch.status}_at"] = _whole(batch.ended_at)
    return {
        "id": batch.id, "object": "batch", "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_file, "completion_window": batch.completion_window, "status": batch.status,
        "output_file_id": batch.output_file, "error_file_id": batch.error_file, "created_at": int(batch.created_at),
        "in_progress_at": _whole(batch.in_progress_at), "expires_at": _whole(batch.expires_at),
        "finalizing_at": _whole(batch.finalizing_at), "cancelling_at": _whole(batch.cancelling_at), **ended,
        "request_counts": {
            "total": batch.total, "completed": counts.succeeded,
            "failed": counts.errored + (counts.expired if batch.status == "expired" else 0),
        },
        "metadata": batch.metadata,
    }  # fmt: skip


def _line(batch_id: str, number: int, custom_id: str, result: ItemResult) -> bytes:
    """A line of an output or error file."""
    response: dict[str, Any] | None = None
    error: dict[str, str] | None = None
    if result.status:
        response = {"status_code": result.status, "request_id": result.request_id, "body": result.body}
    elif result.outcome == "errored":
        error = {"code": result.code, "message": result.message}
    else:
        error = {
            "code": f"batch_{result.outcome}",
            "message": f"the batch was {result.outcome} before this request ended",
        }
    line = {"id": f"batch_req_{batch_id.rpartition('_')[2]}{number:06d}", "custom_id": custom_id}
    return msgspec.json.encode({**line, "response": response, "error": error}) + b"\n"


def _whole(moment: float | None) -> int | None:
    return None if moment is None else int(moment)

"""Files uploaded by clients, streamed to disk."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import anyio
import anyio.to_thread
import msgspec

from hostler.adapters.base import Adapter, WireResponse
from hostler.adapters.errors import (
    BadRequest,
    ClientDisconnected,
    Forbidden,
    GatewayError,
    RequestTooLarge,
    UnsupportedMediaType,
)
from hostler.gateway.asgi import ROUTE_KEY, Receive, RouteMatch, Scope, Send
from hostler.profiles.blobs import BlobError, BlobStore, StorageFull, Upload
from hostler.profiles.presets import is_digest

logger = logging.getLogger(__name__)

#: Bytes collected before a thread writes them.
_BLOCK = 1024 * 1024


class Uploads:
    """Stores a body under the digest in the path: 201 for a new file, 200 for a known one. 403 unless `allowed`."""

    def __init__(self, blobs: BlobStore, *, allowed: bool) -> None:
        self._blobs = blobs
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route: RouteMatch = scope[ROUTE_KEY]
        adapter = route.adapter
        assert adapter is not None
        try:
            if any(name == b"content-encoding" and value != b"identity" for name, value in scope["headers"]):
                raise UnsupportedMediaType("files are uploaded as they are, without Content-Encoding")
            created = await self._store(scope["path_params"].get("digest", ""), receive)
            response = WireResponse(status=201 if created else 200)
        except ClientDisconnected:
            return
        except GatewayError as error:
            response = _error_response(adapter, route, error)
        except Exception:
            logger.exception("unhandled exception in an upload")
            response = _error_response(adapter, route, GatewayError("internal error; see the gateway's log"))
        await _send(send, response)

    async def _store(self, digest: str, receive: Receive) -> bool:
        if not is_digest(digest):
            raise BadRequest("invalid digest format", param="digest")
        if not self._allowed:
            raise Forbidden("uploads are disabled; gateway.library.uploads_max in the configuration enables them")
        if await anyio.to_thread.run_sync(self._blobs.path, digest) is not None:
            await _discard(receive)
            return False
        upload: Upload | None = None
        try:
            upload = await anyio.to_thread.run_sync(self._blobs.start_upload, digest)
            async for block in _blocks(receive):
                await anyio.to_thread.run_sync(upload.write, block)
            actual = await anyio.to_thread.run_sync(upload.commit)
        except StorageFull as error:
            raise RequestTooLarge(str(error)) from error
        except BlobError as error:
            raise GatewayError(str(error)) from error
        finally:
            if upload is not None:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(upload.discard)
        if actual[7:] != digest[7:].lower():
            raise BadRequest(f'digest mismatch, expected "{digest}", got "{actual}"', param="digest")
        return True


async def _blocks(receive: Receive) -> AsyncIterator[bytes]:
    """The body in blocks. Raises `ClientDisconnected`."""
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected("the client disconnected before its file was complete")
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        more = message.get("more_body", False)
        if size >= _BLOCK or (size and not more):
            yield b"".join(parts)
            parts, size = [], 0


async def _discard(receive: Receive) -> None:
    """Read and drop the body: clients may not read the answer before they have sent it."""
    async for _ in _blocks(receive):
        pass


def _error_response(adapter: Adapter, route: RouteMatch, error: GatewayError) -> WireResponse:
    answer = adapter.error_response(error, route.operation)
    # The rest of the body is not read: close, or the server would wait for its end.
    return msgspec.structs.replace(answer, headers=(*answer.headers, ("Connection", "close")))


async def _send(send: Send, response: WireResponse) -> None:
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1", "replace")) for name, value in response.headers]
    if response.body:
        headers.append((b"content-type", response.media_type.encode("latin-1")))
    headers.append((b"content-length", b"%d" % len(response.body)))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})

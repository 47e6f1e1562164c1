"""Bodies of uploads, and what is passed on of a request that was read."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from hostler.adapters.base import Operation
from hostler.adapters.errors import RequestTooLarge, TooManyRequests
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.gateway.asgi import Receive, RouteMatch, Scope, Send
from hostler.gateway.batches.http import MAX_FILE, PassOnRoutes, UploadLimit, endpoint
from hostler.gateway.batches.store import StorageFailed
from hostler.gateway.request_body import read_body

pytestmark = pytest.mark.anyio

COMPRESSED = ((b"content-encoding", b"gzip"), (b"content-length", b"29"))


def scope(*headers: tuple[bytes, bytes]) -> Scope:
    return {"type": "http", "method": "POST", "path": "/v1/files", "headers": [*headers], "query_string": b""}


def request(body: bytes, *headers: tuple[bytes, bytes]) -> Request:
    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(scope(*headers), receive)


async def test_a_compressed_upload_is_bounded_by_what_it_expands_to() -> None:
    body = gzip.compress(b"x" * 100)
    assert await read_body(request(body, *COMPRESSED), 100) == b"x" * 100
    with pytest.raises(RequestTooLarge, match=r"99 bytes \(gateway\.batches\.max_file\)"):
        await read_body(request(body, *COMPRESSED), 99, MAX_FILE)


async def test_a_request_is_passed_on_with_the_headers_of_the_body_that_was_read() -> None:
    passed: list[Request] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(Request(scope, receive))

    operation = Operation(name="any", path="/{rest:path}", methods=("POST",))
    routes = PassOnRoutes(expected=True)
    routes.by_method = {"POST": RouteMatch(operation=operation, app=app)}
    unread = Request(scope(*COMPRESSED)).scope
    assert await routes.send(unread, anyio.sleep_forever, _ignore, b"purpose=vision")
    (found,) = passed
    assert (await found.body(), found.headers.get("content-encoding")) == (b"purpose=vision", None)
    assert found.headers.get("content-length") == "14"


async def _ignore(message: Any) -> None:
    pass


async def test_an_answer_that_cannot_be_read_to_its_end_is_broken_off_and_logged_in_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def lines() -> AsyncIterator[bytes]:
        yield b"{}"
        raise StorageFailed("batches cannot be stored (disk I/O error); see gateway.batches.file")

    async def handler(request: Request) -> Response:
        return StreamingResponse(lines())

    operation = Operation(name="file_content", path="/v1/files/{id}/content", methods=("GET",))
    app = endpoint(OpenAIAdapter(), operation, handler, PassOnRoutes(expected=False))
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope() | {"method": "GET", "asgi": {"spec_version": "2.4"}}, anyio.sleep_forever, send)
    assert sent[-1] == {"type": "http.response.body", "body": b"{}", "more_body": True}
    (record,) = caplog.records
    assert record.exc_info is None and "broke off: batches cannot be stored (disk I/O error)" in record.getMessage()


def test_so_many_large_uploads_are_read_at_a_time() -> None:
    limit, large = UploadLimit(most=2), request(b"", (b"content-length", b"99999999"))
    with limit.entered(large), limit.entered(request(b"", *COMPRESSED)):
        for refused in (large, request(b""), request(b"", *COMPRESSED)):
            with pytest.raises(TooManyRequests) as caught, limit.entered(refused):
                pass
            assert caught.value.retry_after_s
        with limit.entered(request(b"", (b"content-length", b"29"))):
            pass
    with limit.entered(large), limit.entered(large):
        pass

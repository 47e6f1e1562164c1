"""Bodies of uploads, and what is passed on of a request that was read."""

from __future__ import annotations

import gzip
from typing import Any

import anyio
import pytest
from starlette.requests import Request

from hostler.adapters.base import Operation
from hostler.adapters.errors import RequestTooLarge
from hostler.gateway.asgi import Receive, RouteMatch, Scope, Send
from hostler.gateway.batches.http import MAX_FILE, PassOnRoutes
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

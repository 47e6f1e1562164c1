"""Bodies of uploads, and what is passed on of a request that was read."""

from __future__ import annotations

import gzip
from typing import Any

import anyio
import pytest
from starlette.requests import Request

from hostler.adapters.base import Operation
from hostler.adapters.errors import BadRequest, RequestTooLarge, TooManyRequests
from hostler.gateway.asgi import Receive, RouteMatch, Scope, Send
from hostler.gateway.batches.http import MAX_FILE, PassOnRoutes, UploadLimit, page
from hostler.gateway.batches.records import StoredFile
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


def asked(query: str) -> Request:
    return Request({**scope(), "query_string": query.encode()})


FILES = [
    StoredFile(id=f"f{number}", owner="", filename="", purpose="batch", bytes=0, created_at=0.0) for number in range(4)
]


@pytest.mark.parametrize(
    ("query", "ids", "more"),
    [("", "0123", False), ("limit=2", "01", True), ("after=f1", "23", False), ("before=f2&limit=1", "1", True)],
)
def test_a_page_begins_after_what_the_request_names(query: str, ids: str, more: bool) -> None:
    shown, has_more = page(FILES, asked(query), default=10, after="after", before="before")
    assert ("".join(each.id[1:] for each in shown), has_more) == (ids, more)


@pytest.mark.parametrize("query", ["after=f9", "before=x", "limit=many"])
def test_a_page_after_what_is_not_in_the_list_is_an_error(query: str) -> None:
    with pytest.raises(BadRequest):
        page(FILES, asked(query), default=10, after="after", before="before")


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

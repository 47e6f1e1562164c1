"""Requests that are passed on to the gateway that has what they name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.requests import Request

from hostler.adapters.errors import BadRequest
from hostler.gateway.batches.http import ElsewhereUnavailable
from hostler.gateway.cluster.membership import Member
from hostler.gateway.cluster.peer_gateways import PeerGateways

pytestmark = pytest.mark.anyio

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"


@asynccontextmanager
async def gateway() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A gateway's address, and the requests that it has got."""
    got: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        got.append(head + await reader.readexactly(length))
        writer.write(ANSWER)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", got


def request(method: str = "GET", *headers: tuple[bytes, bytes]) -> Request:
    scope: dict[str, Any] = {
        "type": "http", "method": method, "path": "/v1/batches", "raw_path": b"/v1/batches", "query_string": b"a=%20b",
        "headers": [(b"host", b"me.lan"), *headers], "scheme": "http", "server": ("me.lan", 80), "root_path": "",
    }  # fmt: skip
    return Request(scope)


def peers(url: str | None, *, is_trusted: bool = True) -> PeerGateways:
    member = Member(id="b", name="attic", version="1", url=url)
    return PeerGateways("a", lambda: {"b": member}, is_trusted=is_trusted)


async def forward(url: str, asked: Request, body: bytes | None) -> bytes:
    """The body of the other gateway's answer."""
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    response = await peers(url).forward("b", asked, body)
    await response(asked.scope, receive, send)
    return b"".join(each.get("body", b"") for each in sent)


async def test_the_other_gateway_gets_what_the_client_has_sent_and_where_it_has_asked() -> None:
    async with gateway() as (url, got):
        key = (b"authorization", b"Bearer k")
        assert await forward(url, request("GET", key, (b"x-forwarded-for", b"1.2.3.4")), None) == b"{}"
    head, *headers = got[0].strip().split(b"\r\n")
    assert head == b"GET /v1/batches?a=%20b HTTP/1.1"
    assert sorted(headers) == [
        b"Host: " + url.removeprefix("http://").encode(),
        b"authorization: Bearer k",
        b"x-hostler-forwarded-from: http://me.lan",
    ]


async def test_a_body_that_was_read_is_not_called_compressed() -> None:
    async with gateway() as (url, got):
        await forward(url, request("POST", (b"content-encoding", b"gzip")), b'{"a": 1}')
    assert b"content-encoding" not in got[0]
    assert got[0].endswith(b'\r\n\r\n{"a": 1}')


@pytest.mark.parametrize(("url", "is_trusted", "way_out"), [(None, True, "gateway_url"), ("http://h", False, "token")])
async def test_a_key_is_sent_to_nobody_who_is_not_known(url: str | None, is_trusted: bool, way_out: str) -> None:
    with pytest.raises(ElsewhereUnavailable, match=f"ask it there, or set cluster.{way_out}"):
        await peers(url, is_trusted=is_trusted).forward("b", request(), None)


@pytest.mark.parametrize("query", [b"a=\xff", b"a=\x01", b"a" * 70_000], ids=["no text", "control", "long"])
async def test_an_address_that_cannot_be_passed_on_is_the_fault_of_its_request(query: bytes) -> None:
    asked = request()
    asked.scope["query_string"] = query
    with pytest.raises(BadRequest, match="cannot be passed on to another gateway"):
        await peers("http://127.0.0.1:1").forward("b", asked, None)


@pytest.mark.parametrize("url", ["http://a\x01b:8000", "http://ä..b:8000"])
async def test_an_address_of_a_gateway_that_is_none_is_not_the_fault_of_a_request(url: str) -> None:
    with pytest.raises(ElsewhereUnavailable, match=r"gateway attic .* correct cluster.gateway_url in its file"):
        await peers(url).forward("b", request(), None)

"""Responses on real sockets: what is read, and what is refused."""

from __future__ import annotations

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from fakes.raw_backend import AMPLE, ASK, CHUNKED, WHOLE, Peer, answering, ask, backend, until

from hostler.adapters.base import WireRequest
from hostler.adapters.errors import BackendBroken
from hostler.gateway.backends.http_transport import LanTransport

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


async def test_returns_the_head_and_the_headers_that_may_be_forwarded(transport: LanTransport) -> None:
    raw = (
        b"HTTP/1.1 404 Not Found\r\nServer: llama.cpp\r\nSet-Cookie: a=b\r\nAccess-Control-Allow-Origin: *\r\nX-Accel-Buffering: no\r\n"
        b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-Kept: one\r\nx-kept: two\r\nContent-Type: a/b; charset=utf-8\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    async with backend(answering(raw)[1]) as box, transport.send(ASK, box, AMPLE) as answer:
        assert (answer.head.status, answer.head.media_type, answer.head.length) == (404, "a/b; charset=utf-8", 2)
        assert answer.headers == {"x-kept": "one, two", "content-type": "a/b; charset=utf-8"}
        assert not answer.until_close


async def test_yields_each_segment_before_the_next_exists(transport: LanTransport) -> None:
    read = [anyio.Event() for _ in range(3)]

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        for event in read:
            await peer.send(b"5\r\ndata \r\n")
            await event.wait()
        await peer.send(b"0\r\n\r\n")

    async with backend(serve) as box, transport.send(ASK, box, AMPLE) as answer:
        number = 0
        async for segment in answer.segments():
            assert segment == b"data "
            read[number].set()
            number += 1
        assert number == 3 and answer.complete


async def test_skips_interim_responses(transport: LanTransport) -> None:
    raw = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nX: y\r\n\r\n" + WHOLE
    async with backend(answering(raw)[1]) as box, transport.send(ASK, box, AMPLE) as answer:
        assert answer.head.status == 200 and "x" not in answer.headers and await answer.read(9) == b"body"


@pytest.mark.parametrize("status", [204, 304])
async def test_a_response_without_a_body_ends_at_its_head(transport: LanTransport, status: int) -> None:
    async with backend(answering(b"HTTP/1.1 %d X\r\nX: y\r\n\r\n" % status)[1]) as box:
        assert await ask(transport, box) == b""
        assert transport.open_connections(box) == 1


async def test_a_response_to_head_has_no_body_whatever_its_length(transport: LanTransport) -> None:
    serve = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n")[1]
    head = WireRequest(method="HEAD", path="/")
    async with backend(serve) as box, transport.send(head, box, AMPLE) as answer:
        assert answer.head.length == 400 and await answer.read(9) == b""


async def test_does_not_follow_redirects(transport: LanTransport) -> None:
    seen, serve = answering(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
    async with backend(serve) as box, transport.send(ASK, box, AMPLE) as answer:
        assert answer.head.status == 302 and await answer.read(9) == b""
    assert len(seen) == 1


async def test_an_http_1_0_response_ends_with_its_connection(transport: LanTransport) -> None:
    serve = answering(b"HTTP/1.0 200 OK\r\n\r\nwo", b"rds", close=True)[1]
    async with backend(serve) as box, transport.send(ASK, box, AMPLE) as answer:
        assert answer.until_close and await answer.read(100) == b"words"


async def test_reads_no_more_than_the_limit(transport: LanTransport) -> None:
    async with backend(answering(WHOLE)[1]) as box, transport.send(ASK, box, AMPLE) as answer:
        assert await answer.read(2) == b"bo"


@pytest.mark.parametrize(
    "cut", [WHOLE[:-1], CHUNKED + b"4\r\nbody\r\n", CHUNKED + b"9\r\nbody", CHUNKED + b"4\r\nbody\r\n0\r\n"], ids=repr
)
async def test_a_truncated_response_yields_what_came_and_then_fails(transport: LanTransport, cut: bytes) -> None:
    got = b""
    async with backend(answering(cut, close=True)[1]) as box:
        with pytest.raises(BackendBroken, match="in the middle"):
            async with transport.send(ASK, box, AMPLE) as answer:
                async for segment in answer.segments():
                    got += segment
    assert got == b"body"[: len(got)] and len(got) >= 3


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody",
        HEAD + b"Content-Length: 4, 5\r\n\r\nbody",
        HEAD + b"Content-Length: -4\r\n\r\nbody",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\nbody",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        HEAD + b"X: a\r\n b\r\nContent-Length: 4\r\n\r\nbody",
        HEAD + b"X: a\nContent-Length: 4\r\n\r\nbody",
        HEAD + b"X: a\rb\r\nContent-Length: 4\r\n\r\nbody",
        HEAD + b"X : a\r\nContent-Length: 4\r\n\r\nbody",
        HEAD + b"".join(b"X-%d: y\r\n" % number for number in range(200)) + b"\r\n",
        HEAD + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        HEAD + b"X: " + b"y" * 1_000_000,
        CHUNKED + b"zz\r\nbody\r\n",
        CHUNKED + b"4\r\nbodyX\r\n",
        CHUNKED + b"fffffffffffffffff\r\n",
        CHUNKED + b"4;" + b"x" * 1_000_000,
        CHUNKED + b"0\r\n" + b"".join(b"T-%d: y\r\n" % number for number in range(200)) + b"\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 4\r\n\r\nbody",
        b"HTTP/1.1 099 X\r\nContent-Length: 4\r\n\r\nbody",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nbody",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
        b"RTSP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody",
        b"\x16\x03\x01 this is TLS",
    ],
    ids=lambda raw: repr(raw[:60]),
)
async def test_refuses_ambiguous_framing(transport: LanTransport, raw: bytes) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(raw)
        await peer.gone()

    async with backend(serve) as box:
        with pytest.raises(BackendBroken, match='backend "box"'):
            await ask(transport, box)
        await until(lambda: transport.open_connections(box) == 0)

"""What came before on a connection changes nothing about how a request is read."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.gateway.asgi import HEAD as HEAD_KEY
from hostler.gateway.asgi import Receive, Scope, Send
from hostler.gateway.server.server import Server, bind

HEAD = b"POST /a%20b?c=d HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer k\r\nContent-Length: %d\r\nX-Last: z\r\n\r\n"


class Mirror:
    """Answers with what it was asked; `known` says of each request whether its head had been remembered."""

    def __init__(self) -> None:
        self.known: list[bool] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.known.append(HEAD_KEY in scope["extensions"])
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        names = ("method", "path", "raw_path", "query_string", "http_version", "headers", "client", "server", "scheme")
        seen = msgspec.json.encode([{name: scope[name] for name in names if name != "client"}, body])
        headers = [(b"content-length", b"%d" % len(seen))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": seen})


class Talk:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, *pieces: bytes) -> bytes:
        """The status line and the body of the answer to these bytes, each piece in a segment of its own."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            if len(pieces) > 1:
                await anyio.sleep(0.002)
        with anyio.fail_after(20):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            return head.partition(b"\r\n")[0] + await self.reader.readexactly(int(length.split(b":")[1]))


@pytest.fixture
def mirror() -> Mirror:
    return Mirror()


@asynccontextmanager
async def talking(mirror: Mirror, connections: int = 1) -> AsyncIterator[list[Talk]]:
    sockets = bind([("127.0.0.1", 0)], "here")
    started = anyio.Event()
    server = Server(mirror, drain_s=1, started_callback=started.set)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, sockets)
        await started.wait()
        talks = [Talk(*await asyncio.open_connection(*sockets[0].getsockname())) for _ in range(connections)]
        try:
            yield talks
        finally:
            for talk in talks:
                talk.writer.close()
                with contextlib.suppress(OSError):
                    await talk.writer.wait_closed()
            server.stop()


def request(body: bytes) -> bytes:
    return HEAD.replace(b"%d", b"%d" % len(body)) + body


@pytest.mark.anyio
async def test_the_second_request_with_the_same_head_is_known_whatever_its_length(mirror: Mirror) -> None:
    async with talking(mirror, 2) as (again, parsed):
        for number, body in enumerate((b"{}", b"[]", b"x" * 5000, b"", b"{}")):
            # In two pieces a request is always read by the parser.
            half = len(HEAD) // 2
            data = request(body)
            assert await again.ask(data) == await parsed.ask(data[:half], data[half:]), number
    assert mirror.known[0::2] == [False, True, True, True, True]
    assert mirror.known[1::2] == [False] * 5


@pytest.mark.parametrize(
    "data",
    [
        HEAD.replace(b"%d", b"02") + b"{}",
        HEAD.replace(b"%d", b"+2") + b"{}",
        HEAD.replace(b"%d", b"2 ") + b"{}",
        HEAD.replace(b"%d", b"2,2") + b"{}",
        HEAD.replace(b"%d", b"2\r\nContent-Length: 3") + b"{}",
        HEAD.replace(b"%d", b"2\r\nTransfer-Encoding: chunked") + b"{}",
        HEAD.replace(b"%d", b"2").replace(b"Bearer k", b"Bearer j") + b"{}",
        HEAD.replace(b"%d", b"2").replace(b"X-Last: z", b"X-Last: zz") + b"{}",
        HEAD.replace(b"%d", b"2").replace(b"POST", b"PUT") + b"{}",
        b"\r\n" + HEAD.replace(b"%d", b"2") + b"{}",
    ],
)
@pytest.mark.anyio
async def test_what_is_a_little_different_is_read_as_if_nothing_had_come_before(mirror: Mirror, data: bytes) -> None:
    async with talking(mirror, 2) as (again, fresh):
        for _ in range(2):
            await again.ask(request(b"{}"))
        assert await again.ask(data) == await fresh.ask(data)
    assert mirror.known[:2] == [False, True]
    assert not any(mirror.known[2:])


@pytest.mark.anyio
async def test_two_requests_at_once_are_two_requests(mirror: Mirror) -> None:
    async with talking(mirror) as (talk,):
        one = await talk.ask(request(b"{}"))
        assert await talk.ask(request(b"{}") + request(b"[1]")) == one
        assert (await talk.ask()).endswith(b',"WzFd"]')
        assert await talk.ask(request(b"{}")) == one


@given(bodies=st.lists(st.binary(max_size=40), min_size=2, max_size=6), cuts=st.lists(st.integers(0, 170), max_size=6))
@settings(max_examples=30, deadline=None)
def test_however_requests_are_cut_the_answers_are_the_same(bodies: list[bytes], cuts: list[int]) -> None:
    async def compare() -> None:
        async with talking(Mirror(), 2) as (whole, cut):
            for number, body in enumerate(bodies):
                data = request(body)
                at = min(cuts[number], len(data) - 1) if number < len(cuts) else 0
                pieces = [data[:at], data[at:]] if at else [data]
                assert await whole.ask(data) == await cut.ask(*pieces)

    anyio.run(compare)


@pytest.mark.anyio
async def test_headers_that_an_application_adds_do_not_reach_the_next_request() -> None:
    class Adding(Mirror):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            scope["headers"].append((b"x-added", b"1"))
            await super().__call__(scope, receive, send)

    adding = Adding()
    async with talking(adding) as (talk,):
        answers = [await talk.ask(HEAD.replace(b"%d", b"2") + b"hi") for _ in range(3)]
    assert adding.known == [False, True, True]
    assert [answer.count(base64.b64encode(b"x-added")) for answer in answers] == [1, 1, 1]

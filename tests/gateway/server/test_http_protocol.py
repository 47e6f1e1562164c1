"""HTTP/1.1 as the gateway speaks it to clients, byte by byte on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest

from hostler.gateway.asgi import DISCONNECT, Receive, Scope, Send
from hostler.gateway.server.http_protocol import Limits
from hostler.gateway.server.server import Server, bind

pytestmark = pytest.mark.anyio

QUICK = Limits(head_s=0.2, idle_s=0.3, body_s=0.2, stall_s=0.3, linger_s=0.3)
GET = b"GET /get HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: a\r\n"
BIG = 64 * 1024


class Application:
    """What each path does; `seen` are the requests that got through."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.arrived = anyio.Event()
        self.left = anyio.Event()
        self.sent = 0
        self.connections: Callable[[], int] = lambda: 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append((scope["method"], scope["path"]))
        self.arrived.set()
        await getattr(self, scope["path"].strip("/").partition("/")[0])(scope, receive, send)

    async def get(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, scope["query_string"] or b"hello")

    async def echo(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left.set()
                return
            body += message["body"]
            more = message["more_body"]
        await answer(send, body)

    async def refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"too large", status=413)

    async def headers(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        await answer(send, b";".join(b"%b=%b" % pair for pair in scope["headers"]))

    async def stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"one", b"", b"two"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def bare(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.left.wait()
        await send({"type": "http.response.body", "body": b"late"})

    async def wait(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"][DISCONNECT]["notify"](self.left.set)
        await self.left.wait()

    async def flood(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"][DISCONNECT]["notify"](self.left.set)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not self.left.is_set():
            await send({"type": "http.response.body", "body": bytes(BIG), "more_body": True})
            self.sent += BIG

    async def brim(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"][DISCONNECT]["notify"](self.left.set)
        transport = scope["extensions"][DISCONNECT]["notify"].__self__.protocol.transport
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not transport.get_write_buffer_size():
            await send({"type": "http.response.body", "body": bytes(16 * 1024), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        self.sent = 1

    async def fail(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("on purpose")

    async def half(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    async def inject(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"x", b"a\r\nset-cookie: b")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})


async def answer(send: Send, body: bytes, status: int = 200) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Client:
    """A socket, and what came out of it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def read(self) -> tuple[bytes, bytes]:
        """One answer with a length: its head and its body."""
        with anyio.fail_after(20):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            return head, await self.reader.readexactly(int(length.split(b":")[1]))

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        with anyio.fail_after(20):
            return await self.reader.read()


Connect = Callable[[], AbstractAsyncContextManager[Client]]


@asynccontextmanager
async def serving(app: Application, limits: Limits | None = None) -> AsyncIterator[Connect]:
    sockets = bind([("127.0.0.1", 0)], "here")
    started = anyio.Event()
    server = Server(app, drain_s=1, started_callback=started.set, limits=limits)
    app.connections = lambda: len(server.server_state.connections)

    @asynccontextmanager
    async def connect() -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection(*sockets[0].getsockname())
        try:
            yield Client(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, sockets)
        await started.wait()
        try:
            yield connect
        finally:
            app.left.set()
            server.stop()


@pytest.fixture
def app() -> Application:
    return Application()


async def asked(app: Application, data: bytes, limits: Limits | None = None) -> bytes:
    """Everything that the server says to these bytes until it closes."""
    async with serving(app, limits) as connect, connect() as client:
        client.writer.write(data)
        return await client.rest()


async def test_head_and_body_come_in_one_piece(app: Application) -> None:
    async with serving(app) as connect, connect() as client:
        client.writer.write(GET)
        data = await client.reader.read(BIG)
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert data.endswith(b"content-length: 5\r\n\r\nhello")


async def test_a_connection_is_kept_for_the_next_request(app: Application) -> None:
    async with serving(app) as connect, connect() as client:
        for number in (b"1", b"22"):
            client.writer.write(GET.replace(b"/get", b"/get?" + number))
            assert (await client.read())[1] == number


async def test_pipelined_requests_are_answered_in_order(app: Application) -> None:
    requests = [GET.replace(b"/get", b"/get?%d" % number) for number in range(40)]
    async with serving(app) as connect, connect() as client:
        client.writer.write(b"".join(requests) + POST + b"Content-Length: 2\r\n\r\nhi")
        answers = [(await client.read())[1] for _ in range(41)]
    assert answers == [*(b"%d" % number for number in range(40)), b"hi"]


@pytest.mark.parametrize(
    "close", [b"GET /get HTTP/1.0\r\n\r\n", GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")]
)
async def test_who_wants_no_further_answer_is_closed_after_this_one(app: Application, close: bytes) -> None:
    data = await asked(app, close)
    assert b"connection: close\r\n" in data
    assert data.endswith(b"\r\n\r\nhello")


async def test_a_head_request_gets_the_head_alone(app: Application) -> None:
    async with serving(app) as connect, connect() as client:
        client.writer.write(GET.replace(b"GET", b"HEAD") + GET)
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 5" in head
        assert (await client.read())[1] == b"hello"


async def test_a_stream_comes_in_chunks_and_ends_with_the_last_one(app: Application) -> None:
    async with serving(app) as connect, connect() as client:
        client.writer.write(GET.replace(b"/get", b"/stream"))
        assert b"transfer-encoding: chunked\r\n" in await client.reader.readuntil(b"\r\n\r\n")
        assert await client.reader.readexactly(21) == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"


async def test_a_stream_to_an_old_client_ends_with_the_connection(app: Application) -> None:
    data = await asked(app, b"GET /stream HTTP/1.0\r\n\r\n")
    assert b"chunked" not in data
    assert data.endswith(b"\r\n\r\nonetwo")


async def test_a_head_does_not_wait_for_its_body(app: Application) -> None:
    async with serving(app) as connect, connect() as client:
        client.writer.write(GET.replace(b"/get", b"/bare"))
        with anyio.fail_after(20):
            assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        app.left.set()
        assert b"late" in await client.reader.readuntil(b"late")


async def test_the_body_is_asked_for_when_somebody_reads_it(app: Application) -> None:
    async with serving(app) as connect:
        async with connect() as client:
            client.writer.write(POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.writer.write(b"hi")
            assert (await client.read())[1] == b"hi"
        async with connect() as client:
            client.writer.write(b"POST /refuse HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
            assert (await client.read())[0].startswith(b"HTTP/1.1 413")


async def test_requests_cut_anywhere_are_the_same(app: Application) -> None:
    whole = POST + b"X: y\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: u\r\n\r\n"
    async with serving(app) as connect, connect() as client:
        for cut in range(1, len(whole), 3):
            client.writer.write(whole[:cut])
            await asyncio.sleep(0)
            client.writer.write(whole[cut:])
            assert (await client.read())[1] == b"abcde"


async def test_trailers_do_not_become_headers(app: Application) -> None:
    async with serving(app) as connect, connect() as client:
        client.writer.write(
            b"POST /headers HTTP/1.1\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: x\r\n\r\n"
        )
        assert (await client.read())[1] == b"a=b;transfer-encoding=chunked"


@pytest.mark.parametrize(
    "data",
    [
        POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        POST + b"Content-Length: 3, 3\r\n\r\nabc",
        POST + b"Content-Length: +3\r\n\r\nabc",
        POST + b"Content-Length : 3\r\n\r\nabc",
        POST + b"X: a\r\n folded\r\n\r\n",
        POST + b"X: a\rb\r\n\r\n",
        POST + b"X: a\nY: b\r\n\r\n",
        POST + b"X: a\x00b\r\n\r\n",
        b"POST /echo HTTP/1.1\nHost: a\n\n",
        b"POST /echo HTTP/1.1\r\n Host: a\r\n\r\n",
        b"GET http://evil.example/get HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /get HTTP/1.2\r\n\r\n",
        b"GET /get\r\n\r\n",
        b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"CONNECT evil.example:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /é HTTP/1.1\r\n\r\n".encode(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_what_two_readers_could_understand_differently_is_refused(app: Application, data: bytes) -> None:
    said = await asked(app, data + GET)
    assert said.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"connection: close\r\n" in said
    assert said.count(b"\r\n\r\n") == 1
    assert app.seen == []


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"xchunked", b"identity"])
async def test_foreign_transfer_codings_are_refused(app: Application, coding: bytes) -> None:
    said = await asked(app, POST + b"Transfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n")
    assert said.split(b" ")[1] in (b"400", b"501")
    assert app.seen == []


async def test_a_body_that_breaks_its_framing_ends_the_request(app: Application) -> None:
    said = await asked(app, POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcde\r\n0\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 400")
    assert app.left.is_set()


async def test_good_requests_are_answered_before_a_bad_one_is_refused(app: Application) -> None:
    said = await asked(app, GET + GET + b"GET\r\n\r\n")
    assert said.count(b"HTTP/1.1 200") == 2
    assert b"HTTP/1.1 400" in said.rpartition(b"hello")[2]


H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (GET[:-2] + H2C + b"\r\n", b"hello"),
        (POST + H2C + b"Content-Length: 4\r\n\r\nbody", b"body"),
        (POST + b"Content-Length: 4\r\n" + H2C + b"\r\nbody", b"body"),
        (POST + H2C + b"Transfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n", b"body"),
    ],
)
async def test_an_upgrade_is_answered_as_if_it_had_not_been_asked_for(
    app: Application, request_: bytes, body: bytes, whole: bool
) -> None:
    async with serving(app) as connect, connect() as client:
        for _ in range(2):
            for piece in [request_ * 2] if whole else [request_[at : at + 1] for at in range(len(request_))] * 2:
                client.writer.write(piece)
                await client.writer.drain()
                if not whole:
                    await asyncio.sleep(0)
            for _ in range(2):
                assert (await client.read())[1] == body
    assert len(app.seen) == 4


async def test_many_upgrades_at_once_are_as_many_requests(app: Application) -> None:
    async with serving(app) as connect, connect() as client:
        client.writer.write((GET[:-2] + H2C + b"\r\n") * 500)
        for _ in range(500):
            assert (await client.read())[1] == b"hello"


async def test_there_are_no_tunnels(app: Application) -> None:
    assert (await asked(app, b"CONNECT /get HTTP/1.1\r\nHost: a\r\n\r\n" + GET)).startswith(b"HTTP/1.1 400")
    assert app.seen == []


@pytest.mark.parametrize(
    "data", [b"GET /" + b"x" * 70_000, GET[:-2] + b"X: " + b"y" * 70_000, GET[:-2] + b"X: y\r\n" * 101 + b"\r\n"]
)
async def test_heads_are_limited(app: Application, data: bytes) -> None:
    assert (await asked(app, data)).startswith(b"HTTP/1.1 431")
    assert app.seen == []


async def test_a_slow_head_ends(app: Application) -> None:
    assert (await asked(app, GET[:-4], QUICK)).startswith(b"HTTP/1.1 408")


async def test_a_slow_body_ends(app: Application) -> None:
    said = await asked(app, POST + b"Content-Length: 10\r\n\r\nabc", QUICK)
    assert said.startswith(b"HTTP/1.1 408")
    assert app.left.is_set()


async def test_silent_and_idle_connections_end_without_a_word(app: Application) -> None:
    assert await asked(app, b"", QUICK) == b""
    assert (await asked(app, GET, QUICK)).count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("requests", [0, 1])
async def test_empty_lines_win_no_time(app: Application, requests: int) -> None:
    async with serving(app, QUICK) as connect, connect() as client:
        for _ in range(requests):
            client.writer.write(GET)
            await client.read()
        rest = asyncio.ensure_future(client.rest())
        while not rest.done():
            client.writer.write(b"\r\n")
            await asyncio.wait([rest], timeout=0.05)
        with contextlib.suppress(ConnectionError):
            assert await rest == b""
    assert len(app.seen) == requests


async def test_many_half_open_connections_end_and_others_are_served(app: Application) -> None:
    limits = Limits(head_s=1.5)
    async with serving(app, limits) as connect, contextlib.AsyncExitStack() as stack:
        halves = [await stack.enter_async_context(connect()) for _ in range(200)]
        for half in halves:
            half.writer.write(b"POST /echo HT")
        async with connect() as client:
            client.writer.write(GET)
            assert (await client.read())[1] == b"hello"
        for half in halves:
            assert (await half.rest()).startswith(b"HTTP/1.1 408")


async def test_a_client_that_takes_nothing_ends_and_holds_little_meanwhile(app: Application) -> None:
    async with serving(app, QUICK) as connect, connect() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.write(GET.replace(b"/get", b"/flood"))
        with anyio.fail_after(20):
            await app.left.wait()
    assert app.sent < 64 * 1024 * 1024


@pytest.mark.parametrize("more", [GET, GET[:10], POST + b"Content-Length: 9\r\n\r\n", b"\r\n"])
async def test_further_requests_win_no_time_for_a_client_that_takes_nothing(app: Application, more: bytes) -> None:
    async with serving(app, QUICK) as connect, connect() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.write(GET.replace(b"get", b"flood"))
        await app.arrived.wait()
        before = 0
        while not app.sent or app.sent != before:
            before = app.sent
            await asyncio.sleep(0.05)
        client.writer.write(more)
        with anyio.fail_after(20):
            await app.left.wait()


@pytest.mark.parametrize("head", [GET, GET[:-2] + b"Connection: close\r\n\r\n"])
async def test_the_last_of_an_answer_is_not_kept_for_ever(app: Application, head: bytes) -> None:
    async with serving(app, QUICK) as connect, connect() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.write(head.replace(b"get", b"brim"))
        with anyio.fail_after(20):
            while not app.sent or app.connections():  # noqa: ASYNC110 - the server tells nobody of its connections
                await asyncio.sleep(0.05)


async def test_a_broken_request_cuts_off_no_answer_before_it(app: Application) -> None:
    async with serving(app, QUICK) as connect, connect() as client:
        client.writer.write(GET.replace(b"get", b"wait") + POST + b"Transfer-Encoding: chunked\r\n\r\nno\r\n")
        await app.arrived.wait()
        await asyncio.sleep(3 * QUICK.body_s)
        assert not app.left.is_set()


@pytest.mark.parametrize("path", [b"/wait", b"/flood"])
async def test_leaving_is_told_at_once(app: Application, path: bytes) -> None:
    async with serving(app) as connect, connect() as client:
        client.writer.write(GET.replace(b"/get", path))
        await app.arrived.wait()
        raw: Any = client.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
        with anyio.fail_after(20):
            await app.left.wait()


async def test_an_answer_reaches_a_client_that_is_still_sending(app: Application) -> None:
    async with serving(app) as connect, connect() as client:
        client.writer.write(b"POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(64):
            client.writer.write(bytes(BIG))
        assert await client.read() != (b"", b"")
        assert await client.rest() == b""


async def test_a_failure_is_an_answer_before_the_start_and_a_broken_one_after(app: Application) -> None:
    said = await asked(app, GET.replace(b"/get", b"/fail"))
    assert said.startswith(b"HTTP/1.1 500")
    said = await asked(app, GET.replace(b"/get", b"/half"))
    assert said.endswith(b"4\r\nhalf\r\n")


async def test_a_header_cannot_bring_further_headers(app: Application) -> None:
    said = await asked(app, GET.replace(b"/get", b"/inject"))
    assert b"set-cookie" not in said
    assert said.startswith(b"HTTP/1.1 500")

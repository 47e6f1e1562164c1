"""Requests to a backend on a real socket: what comes out, what is kept, what is closed, and when."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from hostler.adapters.base import WireRequest
from hostler.adapters.errors import BackendBroken, BackendTimeout, BackendUnavailable, BadRequest
from hostler.gateway.backends.base import Endpoint, Timeouts
from hostler.gateway.backends.http_connection import HIGH_WATER
from hostler.gateway.backends.http_transport import LanTransport

pytestmark = pytest.mark.anyio

#: None of these is to be met, however busy the machine is.
AMPLE = Timeouts(connect_s=30, first_byte_s=30, between_bytes_s=30)
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nbody"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ASK = WireRequest(path="/v1/x", body=b"{}")


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture
async def transport() -> AsyncIterator[LanTransport]:
    transport = LanTransport()
    yield transport
    await transport.aclose()


class Peer:
    """The backend's end of one connection."""

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self.stream = stream
        self.left = b""

    async def request(self) -> bytes:
        """The next request, head and body; empty if the client has closed."""
        data = self.left
        while b"\r\n\r\n" not in data:
            if not (more := await self._receive()):
                return b""
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        while len(body) < length:
            if not (more := await self._receive()):
                return b""
            body += more
        self.left = body[length:]
        return head + b"\r\n\r\n" + body[:length]

    async def send(self, data: bytes) -> None:
        await self.stream.send(data)

    async def gone(self) -> None:
        """Until the client has closed."""
        while await self._receive():
            pass

    async def _receive(self) -> bytes:
        try:
            return await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return b""


@asynccontextmanager
async def backend(serve: Callable[[Peer], Awaitable[None]], host: str = "127.0.0.1") -> AsyncIterator[Endpoint]:
    listener = await anyio.create_tcp_listener(local_host=host, local_port=0)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)

    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                await serve(Peer(stream))
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                pass

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handle)
        yield Endpoint(host=host, port=port, name="box")
        group.cancel_scope.cancel()


def answering(*answers: bytes, close: bool = False) -> tuple[list[bytes], Callable[[Peer], Awaitable[None]]]:
    """A backend that gives the same answer to every request, and the requests it saw."""
    seen: list[bytes] = []

    async def serve(peer: Peer) -> None:
        while request := await peer.request():
            seen.append(request)
            for part in answers:
                await peer.send(part)
            if close:
                return

    return seen, serve


async def ask(transport: LanTransport, endpoint: Endpoint, request: WireRequest = ASK) -> bytes:
    async with transport.send(request, endpoint, AMPLE) as answer:
        return await answer.read(1 << 30)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# What goes out.


async def test_sends_path_key_headers_and_body_as_they_are(transport: LanTransport) -> None:
    seen, serve = answering(WHOLE)
    request = WireRequest(path="/v1/a%2Fb?c=d", body=b"{}", content_type="application/json", headers=(("X-A", "b"),))
    async with backend(serve) as box:
        await ask(transport, Endpoint(host=box.host, port=box.port, name="box", key="k", base_path="/api"), request)
    assert seen == [
        b"POST /api/v1/a%%2Fb?c=d HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept-encoding: identity\r\nauthorization: Bearer k\r\n"
        b"content-type: application/json\r\ncontent-length: 2\r\nX-A: b\r\n\r\n{}" % box.port
    ]


async def test_a_get_has_no_body_headers_and_an_empty_post_has_a_length(transport: LanTransport) -> None:
    seen, serve = answering(WHOLE)
    async with backend(serve) as box:
        await ask(transport, box, WireRequest(method="GET", path="/health"))
        await ask(transport, box, WireRequest(path="/tokenize"))
    assert b"content-" not in seen[0] and b"content-length: 0\r\n" in seen[1]


@pytest.mark.parametrize(
    "request_",
    [
        WireRequest(path="/a\r\nX: y"),
        WireRequest(path="/a b"),
        WireRequest(path="/a\0"),
        WireRequest(path="/\u00e4"),
        WireRequest(path="http://elsewhere/"),
        WireRequest(path="/", method="GET / HTTP/1.1\r\n"),
        WireRequest(path="/", content_type="a\r\nb: c"),
        WireRequest(path="/", headers=(("a\nb", "c"),)),
        WireRequest(path="/", headers=(("a", "b\r\nc: d"),)),
        WireRequest(path="/", headers=(("a", "b\0"),)),
        WireRequest(path="/", headers=(("a", "\u2028"),)),
        WireRequest(path="/", headers=(("", "b"),)),
    ],
)
async def test_nothing_can_be_smuggled_into_the_head(transport: LanTransport, request_: WireRequest) -> None:
    with pytest.raises(BadRequest):
        await ask(transport, Endpoint(host="127.0.0.1", port=9, name="box"), request_)


async def test_a_key_with_a_line_break_is_refused(transport: LanTransport) -> None:
    with pytest.raises(ValueError, match='backend "box"'):
        await ask(transport, Endpoint(host="127.0.0.1", port=9, name="box", key="a\r\nb: c"))


async def test_framing_and_credentials_of_others_are_not_sent(transport: LanTransport) -> None:
    seen, serve = answering(WHOLE)
    names = ("Host", "Content-Length", "Transfer-Encoding", "Connection", "Authorization", "Cookie", "Expect")
    async with backend(serve) as box:
        await ask(transport, box, WireRequest(path="/", body=b"ab", headers=tuple((name, "evil") for name in names)))
    assert b"evil" not in seen[0]


async def test_a_large_body_arrives_whole(transport: LanTransport) -> None:
    seen, serve = answering(WHOLE)
    body = os.urandom(5_000_000)
    async with backend(serve) as box:
        assert await ask(transport, box, WireRequest(path="/", body=body)) == b"body"
    assert seen[0].endswith(body)


async def test_an_early_refusal_of_a_large_body_is_heard_and_the_connection_not_kept(transport: LanTransport) -> None:
    async def serve(peer: Peer) -> None:
        await peer.stream.receive()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await peer.gone()

    async with backend(serve) as box:
        async with transport.send(WireRequest(path="/", body=b"x" * 30_000_000), box, AMPLE) as answer:
            assert (answer.head.status, await answer.read(10)) == (413, b"no")
        await until(lambda: transport.open_connections(box) == 0)


# What comes in.


async def until(condition: Callable[[], bool]) -> None:
    """Until something that the event loop brings about, and for which there is no event, has come about."""
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.002)


async def test_gives_head_and_headers_without_what_stays_here(transport: LanTransport) -> None:
    raw = (
        b"HTTP/1.1 404 Not Found\r\nServer: llama.cpp\r\nSet-Cookie: a=b\r\nAccess-Control-Allow-Origin: *\r\nX-Accel-Buffering: no\r\n"
        b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-Kept: one\r\nx-kept: two\r\nContent-Type: a/b; charset=utf-8\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    async with backend(answering(raw)[1]) as box, transport.send(ASK, box, AMPLE) as answer:
        assert (answer.head.status, answer.head.media_type, answer.head.length) == (404, "a/b; charset=utf-8", 2)
        assert answer.headers == {"x-kept": "one, two", "content-type": "a/b; charset=utf-8"}
        assert not answer.until_close


async def test_gives_out_each_segment_before_the_next_exists(transport: LanTransport) -> None:
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


async def test_skips_interim_answers(transport: LanTransport) -> None:
    raw = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nX: y\r\n\r\n" + WHOLE
    async with backend(answering(raw)[1]) as box, transport.send(ASK, box, AMPLE) as answer:
        assert answer.head.status == 200 and "x" not in answer.headers and await answer.read(9) == b"body"


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_ends_at_its_head(transport: LanTransport, status: int) -> None:
    async with backend(answering(b"HTTP/1.1 %d X\r\nX: y\r\n\r\n" % status)[1]) as box:
        assert await ask(transport, box) == b""
        assert transport.open_connections(box) == 1


async def test_an_answer_to_head_has_no_body_whatever_its_length_says(transport: LanTransport) -> None:
    serve = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n")[1]
    head = WireRequest(method="HEAD", path="/")
    async with backend(serve) as box, transport.send(head, box, AMPLE) as answer:
        assert answer.head.length == 400 and await answer.read(9) == b""


async def test_does_not_follow_redirects(transport: LanTransport) -> None:
    seen, serve = answering(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
    async with backend(serve) as box, transport.send(ASK, box, AMPLE) as answer:
        assert answer.head.status == 302 and await answer.read(9) == b""
    assert len(seen) == 1


async def test_an_old_answer_ends_with_its_connection_and_says_so(transport: LanTransport) -> None:
    serve = answering(b"HTTP/1.0 200 OK\r\n\r\nwo", b"rds", close=True)[1]
    async with backend(serve) as box, transport.send(ASK, box, AMPLE) as answer:
        assert answer.until_close and await answer.read(100) == b"words"


async def test_reads_no_more_than_asked_for(transport: LanTransport) -> None:
    async with backend(answering(WHOLE)[1]) as box, transport.send(ASK, box, AMPLE) as answer:
        assert await answer.read(2) == b"bo"


@pytest.mark.parametrize(
    "cut", [WHOLE[:-1], CHUNKED + b"4\r\nbody\r\n", CHUNKED + b"9\r\nbody", CHUNKED + b"4\r\nbody\r\n0\r\n"], ids=repr
)
async def test_a_cut_answer_gives_what_came_and_then_fails(transport: LanTransport, cut: bytes) -> None:
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
async def test_refuses_what_can_be_read_in_two_ways(transport: LanTransport, raw: bytes) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(raw)
        await peer.gone()

    async with backend(serve) as box:
        with pytest.raises(BackendBroken, match='backend "box"'):
            await ask(transport, box)
        await until(lambda: transport.open_connections(box) == 0)


# What is kept.


async def test_keeps_the_connection_of_a_whole_answer(transport: LanTransport) -> None:
    seen, serve = answering(WHOLE)
    opened = 0

    async def count(peer: Peer) -> None:
        nonlocal opened
        opened += 1
        await serve(peer)

    async with backend(count) as box:
        for _ in range(150):
            assert await ask(transport, box) == b"body"
    assert (len(seen), opened) == (150, 2)  # one carries a hundred


@pytest.mark.parametrize(
    "raw",
    [
        CHUNKED + b"4\r\nbody\r\n0\r\n\r\n",
        WHOLE.replace(b"Content-Type", b"Connection: close\r\nContent-Type"),
        WHOLE.replace(b"Content-Type", b"Keep-Alive: timeout=1, max=100\r\nContent-Type"),
        WHOLE.replace(b"1.1", b"1.0"),
        WHOLE + b"more",
    ],
    ids=repr,
)
async def test_does_not_keep_a_connection_that_may_be_closed_or_spoiled(transport: LanTransport, raw: bytes) -> None:
    async with backend(answering(raw)[1]) as box:
        assert await ask(transport, box) == b"body"
        await until(lambda: transport.open_connections(box) == 0)


async def test_closes_an_idle_connection_before_the_backend_does(transport: LanTransport) -> None:
    raw = WHOLE.replace(b"Content-Type", b"Keep-Alive: timeout=2\r\nContent-Type")
    async with backend(answering(raw)[1]) as box:
        took: list[float] = []
        # The best of a few: what a machine does that is busy with other things is not the question.
        while not took or (min(took) >= 2 and len(took) < 4):
            await ask(transport, box)
            assert transport.open_connections(box) == 1
            started = time.monotonic()
            await until(lambda: transport.open_connections(box) == 0)
            took.append(time.monotonic() - started)
        assert min(took) < 2


async def test_words_that_nobody_asked_for_close_the_connection(transport: LanTransport) -> None:
    speak = anyio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(WHOLE)
        await speak.wait()
        await peer.send(b"HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n")
        await peer.gone()

    async with backend(serve) as box:
        await ask(transport, box)
        speak.set()
        await until(lambda: transport.open_connections(box) == 0)


class StaleServer:
    """A server on plain sockets in a thread, so that it can close while the client's event loop stands still."""

    def __init__(self, second: str) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.second = second
        self.requests = 0
        self.close_first = threading.Event()
        self.first_closed = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        first, _ = self.listener.accept()
        self.answer(first)
        self.close_first.wait(5)
        if self.second == "read-and-close":
            first.recv(65536)
            self.requests += 1
        elif self.second == "close-unread":
            first.recv(1)
        first.close()
        self.first_closed.set()
        self.listener.settimeout(0.3)
        try:
            second, _ = self.listener.accept()
        except TimeoutError:
            return
        with closing(second):
            self.answer(second)

    def answer(self, sock: socket.socket) -> None:
        if sock.recv(65536):
            self.requests += 1
        sock.sendall(WHOLE)


@pytest.fixture
def stale() -> Iterator[Callable[[str], StaleServer]]:
    servers: list[StaleServer] = []

    def start(second: str) -> StaleServer:
        servers.append(StaleServer(second))
        servers[-1].thread.start()
        return servers[-1]

    yield start
    for server in servers:
        server.close_first.set()
        server.thread.join(5)
        server.listener.close()


async def test_a_connection_closed_before_our_request_came_is_replaced_once(
    transport: LanTransport, stale: Callable[[str], StaleServer]
) -> None:
    server = stale("close")
    box = Endpoint(host="127.0.0.1", port=server.listener.getsockname()[1], name="box")
    assert await ask(transport, box) == b"body"
    server.close_first.set()
    server.first_closed.wait(5)  # the event loop stands still meanwhile: it has not heard of it
    assert await ask(transport, box) == b"body"
    assert server.requests == 2


async def test_a_connection_closed_with_our_request_unread_is_replaced_once(
    transport: LanTransport, stale: Callable[[str], StaleServer]
) -> None:
    server = stale("close-unread")
    box = Endpoint(host="127.0.0.1", port=server.listener.getsockname()[1], name="box")
    assert await ask(transport, box) == b"body"
    server.close_first.set()
    assert await ask(transport, box) == b"body"
    assert server.requests == 2


async def test_a_request_that_was_read_is_never_sent_again(
    transport: LanTransport, stale: Callable[[str], StaleServer]
) -> None:
    server = stale("read-and-close")
    box = Endpoint(host="127.0.0.1", port=server.listener.getsockname()[1], name="box")
    assert await ask(transport, box) == b"body"
    server.close_first.set()
    with pytest.raises(BackendBroken, match="without an answer"):
        await ask(transport, box)
    server.thread.join(5)
    assert server.requests == 2


# What is closed, and when.


async def test_leaving_in_mid_stream_closes_at_once(transport: LanTransport) -> None:
    gone = anyio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"5\r\ndata \r\n")
        await peer.gone()
        gone.set()

    async with backend(serve) as box:
        async with transport.send(ASK, box, AMPLE) as answer:
            assert await anext(answer.segments()) == b"data "
        with anyio.fail_after(0.2):
            await gone.wait()


async def test_a_cancelled_request_is_closed_at_once(transport: LanTransport) -> None:
    asked, gone = anyio.Event(), anyio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.gone()
        gone.set()

    async with backend(serve) as box, anyio.create_task_group() as group:
        group.start_soon(ask, transport, box)
        await asked.wait()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True), anyio.fail_after(0.2):
            await gone.wait()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_cancelling_at_any_moment_leaves_no_socket(transport: LanTransport, host: str) -> None:
    async def serve(peer: Peer) -> None:
        while await peer.request():
            for piece in (WHOLE[:9], WHOLE[9:-2], WHOLE[-2:]):
                await anyio.lowlevel.checkpoint()
                await peer.send(piece)

    finished = 0

    async def run(box: Endpoint, body: bytes) -> None:
        nonlocal finished
        assert await ask(transport, box, WireRequest(path="/", body=body)) == b"body"
        finished += 1

    async with backend(serve) as local:
        box = Endpoint(host=host, port=local.port, name="box")
        await ask(transport, box)
        for body in (b"{}", b"x" * 2_000_000):
            for steps in range(60):
                transport.close_idle(box) if steps % 2 else None
                async with anyio.create_task_group() as group:
                    group.start_soon(run, box, body)
                    for _ in range(steps):
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
        transport.close_idle(box)
        await until(lambda: transport.open_connections(box) == 0)
        assert await ask(transport, box) == b"body"
        assert finished > 0


async def test_two_hundred_dropped_streams_leave_no_open_file(transport: LanTransport) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        with anyio.move_on_after(10):
            while True:
                await peer.send(b"5\r\ndata \r\n")
                await anyio.sleep(0.001)

    async def drop(box: Endpoint, after: int) -> None:
        async with transport.send(ASK, box, AMPLE) as answer:
            segments = answer.segments()
            for _ in range(after):
                await anext(segments)

    async with backend(serve) as box:
        await drop(box, 1)
        await until(lambda: transport.open_connections(box) == 0)
        before = open_files()
        async with anyio.create_task_group() as group:
            for number in range(200):
                group.start_soon(drop, box, number % 7)
        await until(lambda: open_files() <= before)


async def test_close_all_ends_requests_and_closes_idle_connections(transport: LanTransport) -> None:
    asked, closed = anyio.Event(), 0
    failure: list[BackendBroken] = []

    async def serve(peer: Peer) -> None:
        nonlocal closed
        if b"/idle" in await peer.request():
            await peer.send(WHOLE)
        else:
            asked.set()
        await peer.gone()
        closed += 1

    async def wait(box: Endpoint) -> None:
        with pytest.raises(BackendBroken, match="closed") as caught:
            await ask(transport, box)
        failure.append(caught.value)

    async with backend(serve) as box, anyio.create_task_group() as group:
        group.start_soon(wait, box)
        await asked.wait()
        await ask(transport, box, WireRequest(path="/idle"))
        assert transport.open_connections(box) == 2
        transport.close_all(box)
        await until(lambda: closed == 2)
    assert failure and failure[0].backend == "box" and transport.open_connections(box) == 0


async def test_an_answer_is_not_read_outside_its_context(transport: LanTransport) -> None:
    async with backend(answering(WHOLE)[1]) as box:
        async with transport.send(ASK, box, AMPLE) as answer:
            pass
        with pytest.raises(RuntimeError):
            await answer.read(1)


# Backpressure and patience.


async def test_a_slow_reader_holds_the_stream_and_not_our_memory(transport: LanTransport) -> None:
    total, sent = 64 * 1024 * 1024, 0

    async def serve(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        piece = b"x" * 65536
        while sent < total:
            await peer.send(piece)
            sent += len(piece)

    async with backend(serve) as box, transport.send(ASK, box, AMPLE) as answer:
        before = -1
        while before != sent:
            before = sent
            await anyio.sleep(0.05)
        assert sent < total / 2
        largest = got = 0
        async for segment in answer.segments():
            largest, got = max(largest, len(segment)), got + len(segment)
        assert got == total and largest <= HIGH_WATER + 256 * 1024


async def test_a_slow_reader_is_not_a_slow_backend(transport: LanTransport) -> None:
    timeouts = Timeouts(first_byte_s=0.1, between_bytes_s=0.1)
    more = anyio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"4\r\nbody\r\n")
        await more.wait()
        await peer.send(b"4\r\nmore\r\n0\r\n\r\n")

    async with backend(serve) as box, transport.send(ASK, box, timeouts) as answer:
        segments = answer.segments()
        assert await anext(segments) == b"body"
        await anyio.sleep(0.25)
        more.set()
        assert await anext(segments) == b"more"


async def test_silence_before_the_head_is_a_timeout(transport: LanTransport) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200")
        await peer.gone()

    async with backend(serve) as box:
        with pytest.raises(BackendTimeout, match="did not answer in time"):
            async with transport.send(ASK, box, Timeouts(first_byte_s=0.05)):
                pass
        await until(lambda: transport.open_connections(box) == 0)


async def test_silence_in_mid_stream_is_a_timeout_of_its_own(transport: LanTransport) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"4\r\nbody\r\n")
        await peer.gone()

    async with backend(serve) as box:
        started = time.monotonic()
        with pytest.raises(BackendTimeout, match="stopped answering"):
            async with transport.send(ASK, box, Timeouts(first_byte_s=30, between_bytes_s=0.1)) as answer:
                async for segment in answer.segments():
                    assert segment == b"body"
        assert 0.09 <= time.monotonic() - started < 3


async def test_a_backend_that_does_not_read_a_large_body_is_a_timeout(transport: LanTransport) -> None:
    async def serve(peer: Peer) -> None:
        await anyio.sleep_forever()

    async with backend(serve) as box:
        with pytest.raises(BackendTimeout):
            async with transport.send(WireRequest(path="/", body=b"x" * 30_000_000), box, Timeouts(first_byte_s=0.1)):
                pass


# Connecting.


async def test_a_refused_connection_is_unavailable(transport: LanTransport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with pytest.raises(BackendUnavailable, match='backend "box" refused') as caught:
        await ask(transport, Endpoint(host="127.0.0.1", port=port, name="box"))
    assert str(port) not in str(caught.value)


async def test_a_connection_that_nobody_takes_is_unavailable_in_time(transport: LanTransport) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as first, socket.socket() as second:
        for sock in (first, second):
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        with pytest.raises(BackendUnavailable, match=r"no connection in 0\.1 s"):
            async with transport.send(
                ASK, Endpoint(host="127.0.0.1", port=full.getsockname()[1], name="box"), Timeouts(connect_s=0.1)
            ):
                pass


async def test_a_name_that_does_not_exist_is_unavailable(transport: LanTransport) -> None:
    with pytest.raises(BackendUnavailable, match="host name"):
        await ask(transport, Endpoint(host="no-such-host.invalid", port=80, name="box"))


async def test_a_name_with_a_dead_address_family_still_connects(transport: LanTransport) -> None:
    async with backend(answering(WHOLE)[1]) as box:  # localhost is ::1 too, where nobody listens
        assert await ask(transport, Endpoint(host="localhost", port=box.port, name="box")) == b"body"


async def test_an_ipv6_address_is_connected_to_and_bracketed(transport: LanTransport) -> None:
    seen, serve = answering(WHOLE)
    try:
        async with backend(serve, host="::1") as box:
            assert await ask(transport, box) == b"body"
    except* OSError:
        pytest.skip("this machine has no IPv6")
    assert b"\r\nhost: [::1]:%d\r\n" % box.port in seen[0]


async def test_addresses_that_nobody_is_connected_to_are_forgotten(transport: LanTransport) -> None:
    for _ in range(5):
        _, serve = answering(WHOLE)
        async with backend(serve) as box:
            await ask(transport, box)
            await ask(transport, box)
        await until(lambda box=box: transport.open_connections(box) == 0)  # type: ignore[misc]  # a default binds the box
    assert transport.addresses == 1

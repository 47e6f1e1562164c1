"""Connections on real sockets: which are kept, replaced and closed, and how new ones are opened."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from fakes.raw_backend import ASK, CHUNKED, WHOLE, Peer, answering, ask, backend, until

from hostler.adapters.errors import BackendBroken, BackendUnavailable
from hostler.gateway.backends.http_response import ResponseReader
from hostler.gateway.backends.http_transport import LanTransport
from hostler.gateway.backends.transport import Endpoint, Timeouts

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


async def test_keeps_the_connection_of_a_complete_response(transport: LanTransport) -> None:
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
async def test_does_not_keep_a_connection_in_doubt(transport: LanTransport, raw: bytes) -> None:
    async with backend(answering(raw)[1]) as box:
        assert await ask(transport, box) == b"body"
        await until(lambda: transport.open_connections(box) == 0)


@pytest.mark.parametrize(("timeout", "kept"), [(b"1", 0.0), (b"2", 1.0), (b"5", 2.0)])
def test_keeps_an_idle_connection_for_less_time_than_the_backend_does(timeout: bytes, kept: float) -> None:
    reader = ResponseReader("GET")
    reader.feed(WHOLE.replace(b"Content-Type", b"Keep-Alive: timeout=" + timeout + b"\r\nContent-Type"))
    assert (reader.complete, reader.keep_s) == (True, kept)


async def test_closes_an_idle_connection_by_itself(transport: LanTransport) -> None:
    raw = WHOLE.replace(b"Content-Type", b"Keep-Alive: timeout=2\r\nContent-Type")
    async with backend(answering(raw)[1]) as box:
        await ask(transport, box)
        assert transport.open_connections(box) == 1
        await until(lambda: transport.open_connections(box) == 0)


async def test_unrequested_bytes_close_an_idle_connection(transport: LanTransport) -> None:
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
        self.close_first.wait(20)
        if self.second == "read-and-close":
            first.recv(65536)
            self.requests += 1
        elif self.second == "close-unread":
            first.recv(1)
        first.close()
        self.first_closed.set()
        # Whether a second connection comes, if none may.
        self.listener.settimeout(0.3 if self.second == "read-and-close" else 20)
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
        server.thread.join(20)
        server.listener.close()


async def test_a_connection_closed_before_the_request_arrived_is_replaced_once(
    transport: LanTransport, stale: Callable[[str], StaleServer]
) -> None:
    server = stale("close")
    box = Endpoint(host="127.0.0.1", port=server.listener.getsockname()[1], name="box")
    assert await ask(transport, box) == b"body"
    server.close_first.set()
    server.first_closed.wait(20)  # the event loop is blocked meanwhile and has not noticed
    assert await ask(transport, box) == b"body"
    assert server.requests == 2


async def test_a_connection_closed_with_the_request_unread_is_replaced_once(
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
    server.thread.join(20)
    assert server.requests == 2


async def test_a_refused_connection_is_unavailable(transport: LanTransport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with pytest.raises(BackendUnavailable, match='backend "box" refused') as caught:
        await ask(transport, Endpoint(host="127.0.0.1", port=port, name="box"))
    assert str(port) not in str(caught.value)


async def test_a_connection_that_is_not_accepted_is_unavailable_in_time(transport: LanTransport) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as first, socket.socket() as second:
        for sock in (first, second):
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        with pytest.raises(BackendUnavailable, match=r"no connection within 0\.1 s"):
            async with transport.send(
                ASK, Endpoint(host="127.0.0.1", port=full.getsockname()[1], name="box"), Timeouts(connect_s=0.1)
            ):
                pass


async def test_a_connection_counts_although_its_time_was_over_while_the_process_was_suspended(
    transport: LanTransport,
) -> None:
    seen, serve = answering(WHOLE)
    async with backend(serve) as box, anyio.create_task_group() as tasks:

        async def suspend() -> None:
            await anyio.lowlevel.checkpoint()
            time.sleep(0.5)  # noqa: ASYNC251 - the point of the test

        tasks.start_soon(suspend)
        async with transport.send(ASK, box, Timeouts(connect_s=0.2)) as answer:
            assert await answer.read(100) == b"body"
    assert len(seen) == 1


async def test_a_name_that_does_not_exist_is_unavailable(transport: LanTransport) -> None:
    with pytest.raises(BackendUnavailable, match="host name"):
        await ask(transport, Endpoint(host="no-such-host.invalid", port=80, name="box"))


async def test_a_name_with_a_dead_address_family_still_connects(transport: LanTransport) -> None:
    async with backend(answering(WHOLE)[1]) as box:  # localhost is ::1 too, where nothing listens
        assert await ask(transport, Endpoint(host="localhost", port=box.port, name="box")) == b"body"


async def test_an_ipv6_address_is_connected_to_and_bracketed(transport: LanTransport) -> None:
    seen, serve = answering(WHOLE)
    try:
        async with backend(serve, host="::1") as box:
            assert await ask(transport, box) == b"body"
    except* OSError:
        pytest.skip("this machine has no IPv6")
    assert b"\r\nhost: [::1]:%d\r\n" % box.port in seen[0]


async def until_disconnected(transport: LanTransport, box: Endpoint) -> None:
    await until(lambda: transport.open_connections(box) == 0)


async def test_pools_without_connections_are_removed(transport: LanTransport) -> None:
    for _ in range(5):
        _, serve = answering(WHOLE)
        async with backend(serve) as box:
            await ask(transport, box)
            await ask(transport, box)
        await until_disconnected(transport, box)
    assert transport.addresses == 1

"""How the server ends: what is in progress has its time, a last word, and is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
import time
from pathlib import Path

import anyio
import httpx
import pytest

from hostler.gateway.asgi import UPGRADE, Receive, Scope, Send
from hostler.gateway.server.http_protocol import Limits
from hostler.gateway.server.server import ListenError, Server, bind

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Endless:
    """Answers nobody until it is cancelled; then it cleans up for a while."""

    def __init__(self) -> None:
        self.arrived = anyio.Event()
        self.ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.arrived.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.1)
            self.ended = True


@pytest.mark.parametrize(("drain_s", "stops"), [(0, 1), (0.3, 1), (0.6, 1), (0, 2), (600, 2)])
async def test_requests_have_their_time_and_are_gone_when_the_server_is(drain_s: float, stops: int) -> None:
    app = Endless()
    sockets = bind([("127.0.0.1", 0)], "here")
    started = anyio.Event()
    server = Server(app, drain_s=drain_s, started_callback=started.set)
    serving = asyncio.ensure_future(server.serve(sockets))
    await started.wait()
    reader, writer = await asyncio.open_connection(*sockets[0].getsockname())
    writer.write(GET)
    await app.arrived.wait()
    began_at = time.monotonic()
    for _ in range(stops):
        server.stop()
    await serving
    took = time.monotonic() - began_at
    assert app.ended
    # A second stop does not wait any longer, or this test would not end.
    assert took >= drain_s or stops == 2
    assert await reader.read() == b""
    writer.close()


async def test_a_cancelled_server_leaves_no_request_behind() -> None:
    app = Endless()
    sockets = bind([("127.0.0.1", 0)], "here")
    started = anyio.Event()
    server = Server(app, drain_s=5, started_callback=started.set)
    serving = asyncio.ensure_future(server.serve(sockets))
    await started.wait()
    _, writer = await asyncio.open_connection(*sockets[0].getsockname())
    writer.write(GET)
    await app.arrived.wait()
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    assert app.ended
    for listening in server.servers:
        listening.close()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


class Living:
    """An application with a lifespan, in which it fails where it is told to."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.fail = anyio.Event()
        self.seen: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
            return
        self.seen.append("request")
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def live(self, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        if self.fails == "start":
            raise LookupError("start")
        await send({"type": "lifespan.startup.complete"})
        self.seen.append("started")
        if self.fails == "run":
            await self.fail.wait()
            raise LookupError("run")
        assert (await receive())["type"] == "lifespan.shutdown"
        self.seen.append("ended")
        await send({"type": "lifespan.shutdown.complete"})


async def test_the_application_lives_around_all_requests() -> None:
    app = Living()
    sockets = bind([("127.0.0.1", 0)], "here")
    started = anyio.Event()
    server = Server(app, drain_s=1, lifespan=True, started_callback=started.set)
    serving = asyncio.ensure_future(server.serve(sockets))
    await started.wait()
    reader, writer = await asyncio.open_connection(*sockets[0].getsockname())
    writer.write(GET)
    await reader.readuntil(b"\r\n\r\n")
    writer.close()
    server.stop()
    await serving
    assert app.seen == ["started", "request", "ended"]


async def test_a_failure_at_the_start_is_raised_and_nothing_is_served() -> None:
    app = Living("start")
    sockets = bind([("127.0.0.1", 0)], "here")
    announced = anyio.Event()
    with pytest.raises(LookupError, match="start"):
        await Server(app, drain_s=1, lifespan=True, started_callback=announced.set).serve(sockets)
    assert not announced.is_set()
    assert sockets[0].fileno() == -1


async def test_a_failure_while_it_runs_ends_the_server_and_is_raised() -> None:
    app = Living("run")
    sockets = bind([("127.0.0.1", 0)], "here")
    started = anyio.Event()
    serving = asyncio.ensure_future(Server(app, drain_s=60, lifespan=True, started_callback=started.set).serve(sockets))
    await started.wait()
    app.fail.set()
    with anyio.fail_after(20), pytest.raises(LookupError, match="run"):
        await serving


async def test_a_server_that_is_cancelled_in_the_start_ends_the_start() -> None:
    began, ended = anyio.Event(), anyio.Event()

    async def never_starting(scope: Scope, receive: Receive, send: Send) -> None:
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    serving = asyncio.ensure_future(
        Server(never_starting, drain_s=60, lifespan=True).serve(bind([("127.0.0.1", 0)], "here"))
    )
    await began.wait()
    serving.cancel()
    with anyio.fail_after(20), contextlib.suppress(asyncio.CancelledError):
        await serving
    assert ended.is_set()


class Large:
    """Starts an answer, and sends the rest of it, more than the kernel takes, once `stopping` is set."""

    def __init__(self) -> None:
        self.stopping = anyio.Event()
        self.sent = anyio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Length", b"%d" % SIZE)]})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await self.stopping.wait()
        self.sent.set()
        await send({"type": "http.response.body", "body": bytes(SIZE - 1)})


SIZE = 16 * 1024 * 1024


async def test_an_answer_that_a_slow_client_still_reads_is_not_cut_off_by_a_stop() -> None:
    app = Large()
    sockets = bind([("127.0.0.1", 0)], "here")
    started = anyio.Event()
    server = Server(app, drain_s=30, started_callback=started.set, limits=Limits(stop_s=0.05))
    serving = asyncio.ensure_future(server.serve(sockets))
    await started.wait()
    reader, writer = await asyncio.open_connection(*sockets[0].getsockname(), limit=1024)
    writer.write(GET)
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    server.stop()
    app.stopping.set()
    await app.sent.wait()
    await anyio.sleep(0.8)  # several sweeps of the server, with the deadline of its linger behind them
    assert len(await reader.read(-1)) == SIZE
    writer.close()
    with anyio.fail_after(20):
        await serving


async def test_a_unix_socket_is_served_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    sockets = bind([(str(path), 0)], "gateway.listen")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with pytest.raises(ListenError, match=r"another program is using it; stop that program or change gateway\.listen"):
        bind([(str(path), 0)], "gateway.listen")
    scopes = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    started = anyio.Event()
    server = Server(app, drain_s=1, started_callback=started.set)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, sockets)
        await started.wait()
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as http:
            assert (await http.get("http://localhost/")).status_code == 204
        server.stop()
    assert (scopes[0]["client"], path.exists()) == (None, False)


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "s"
    file.write_text("kept")
    with pytest.raises(ListenError, match="unix:"):
        bind([(str(file), 0)], "gateway.listen")
    assert file.read_text() == "kept"


class AcceptsLate:
    """Accepts a WebSocket connection once the server stops."""

    def __init__(self) -> None:
        self.arrived = anyio.Event()
        self.error: ConnectionError | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        accept = scope["extensions"][UPGRADE]["accept"]
        self.arrived.set()
        while not accept.__self__.stopping:  # noqa: ASYNC110 - the connection has no event
            await anyio.sleep(0.005)
        try:
            accept(())
        except ConnectionError as error:
            self.error = error


async def test_no_connection_changes_its_protocol_once_the_server_stops() -> None:
    app = AcceptsLate()
    sockets = bind([("127.0.0.1", 0)], "here")
    started = anyio.Event()
    server = Server(app, drain_s=20, started_callback=started.set)
    serving = asyncio.ensure_future(server.serve(sockets))
    await started.wait()
    reader, writer = await asyncio.open_connection(*sockets[0].getsockname())
    writer.write(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    await app.arrived.wait()
    server.stop()
    await serving
    assert isinstance(app.error, ConnectionAbortedError)
    assert b"101" not in await reader.read()
    writer.close()

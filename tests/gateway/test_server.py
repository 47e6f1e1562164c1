"""How the server ends: what is in progress has its time, a last word, and is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import time

import anyio
import pytest

from hostler.gateway.asgi import Receive, Scope, Send
from hostler.gateway.server.server import Server, bind

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


@pytest.mark.parametrize("drain_s", [0, 0.3, 0.6])
@pytest.mark.parametrize("words", [1, 2])
async def test_requests_have_their_time_and_are_gone_when_the_server_is(drain_s: float, words: int) -> None:
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
    for _ in range(words):
        server.stop()
    await serving
    took = time.monotonic() - began_at
    assert app.ended
    assert (drain_s if words == 1 else 0) <= took < (drain_s if words == 1 else 0) + 0.9
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

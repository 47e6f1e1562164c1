"""A tunnel between a client and a backend: who is to blame for its end, and what is no handshake."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from hostler.adapters.errors import BackendBroken
from hostler.gateway.asgi import ByteStream
from hostler.gateway.backends.transport import Endpoint, Timeouts
from hostler.gateway.backends.websocket_tunnel import BackendSocket, open_socket

pytestmark = pytest.mark.anyio

ACCEPT = b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"
#: A frame of 64 KiB of zeros.
FRAME = b"\x82\x7f" + (65536).to_bytes(8, "big") + bytes(65536)


@asynccontextmanager
async def backend(answer: bytes, *, floods: bool) -> AsyncIterator[Endpoint]:
    """A backend that answers handshakes, and then sends frames without end, or closes the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            while floods:
                writer.write(FRAME)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield Endpoint(host="127.0.0.1", port=server.sockets[0].getsockname()[1], name="pc")


def connect(endpoint: Endpoint) -> AbstractAsyncContextManager[BackendSocket]:
    return open_socket(endpoint, "/ws", {"sec-websocket-key": "x"}, (), Timeouts())


@asynccontextmanager
async def client() -> AsyncIterator[tuple[ByteStream, socket.socket]]:
    """The gateway's side of a client's connection, and the client's own."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    with theirs:
        yield ByteStream(reader, writer), theirs


async def test_a_client_that_reads_nothing_is_not_the_backends_failure() -> None:
    async with backend(ACCEPT, floods=True) as endpoint, connect(endpoint) as there, client() as (stream, _):
        await there.relay(stream, stall_s=0.2)


async def test_a_client_that_disconnects_is_not_the_backends_failure() -> None:
    async with backend(ACCEPT, floods=True) as endpoint, connect(endpoint) as there, client() as (stream, theirs):
        theirs.close()
        await there.relay(stream)


async def test_a_backend_that_vanishes_is_at_fault() -> None:
    async with backend(ACCEPT, floods=False) as endpoint, connect(endpoint) as there, client() as (stream, _):
        with pytest.raises(BackendBroken, match="closed the WebSocket connection"):
            await there.relay(stream)


@pytest.mark.parametrize("line", [b"a: b\nc: d", b"Sec-WebSocket-Protocol: a\rb", b"a: \0"])
async def test_a_handshake_with_a_line_break_in_a_header_is_broken(line: bytes) -> None:
    answer = ACCEPT.replace(b"\r\n\r\n", b"\r\n%b\r\n\r\n" % line)
    async with backend(answer, floods=False) as endpoint:
        with pytest.raises(BackendBroken, match="did not answer the WebSocket handshake"):
            async with connect(endpoint):
                pass

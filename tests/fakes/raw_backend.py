"""A backend made of bytes: what a test sends over a socket is what the transport receives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import anyio.lowlevel

from hostler.adapters.base import WireRequest
from hostler.gateway.backends.http_transport import LanTransport
from hostler.gateway.backends.transport import Endpoint, Timeouts

AMPLE = Timeouts(connect_s=30, first_byte_s=30, between_bytes_s=30)


WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nbody"


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


ASK = WireRequest(path="/v1/x", body=b"{}")


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


async def until(condition: Callable[[], bool]) -> None:
    """Until something that the event loop brings about, and for which there is no event, has come about."""
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.002)

"""Requests that become connections of another protocol: `UPGRADE` of Hostler's own server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from hostler.gateway.asgi import ByteStream

#: Unread bytes above which the client has to wait.
_BUFFER_BYTES = 64 * 1024


def switch_protocols(
    transport: asyncio.Transport, headers: Iterable[tuple[bytes, bytes]], on_lost: Callable[[], None]
) -> ByteStream:
    """Answer 101, and return the bytes of the connection from then on. `on_lost` is called once it has ended.

    Raises `ConnectionResetError` if the client has disconnected, and `RuntimeError` for a header with a line break.
    """
    if transport.is_closing():
        raise ConnectionResetError("the client has disconnected")
    lines = [STATUS_LINE[101], *(b"%b: %b\r\n" % header for header in headers)]
    head = b"".join(lines)
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
        raise RuntimeError("a response header contains a line break")
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(_BUFFER_BYTES, loop)
    protocol = _StreamProtocol(reader, loop, on_lost)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    transport.write(head + b"\r\n")
    transport.resume_reading()
    return ByteStream(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


class _StreamProtocol(asyncio.StreamReaderProtocol):
    def __init__(
        self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop, on_lost: Callable[[], None]
    ) -> None:
        super().__init__(reader, loop=loop)
        self._on_lost = on_lost

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._on_lost()

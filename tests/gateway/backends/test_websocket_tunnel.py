"""A tunnel between a client and a backend: who is to blame for its end, and what is no handshake."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from hostler.adapters.canonical import Origin, WebSocketRequest
from hostler.adapters.errors import BackendBroken, ClientDisconnected, GatewayError, ShuttingDown
from hostler.adapters.openai.upstream import OpenAIUpstream
from hostler.gateway.asgi import ByteStream
from hostler.gateway.backends.prompt_reading import PromptSpeeds
from hostler.gateway.backends.transport import Backend, Endpoint, Timeouts, Transport
from hostler.gateway.backends.websocket_tunnel import BackendSocket, open_socket
from hostler.gateway.context import Attempt, Target
from hostler.gateway.proxy import Proxy

pytestmark = pytest.mark.anyio

ACCEPT = b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"
SECRET = "sk-0123456789abcdef/+zz"
#: A frame of 64 KiB of zeros.
FRAME = b"\x82\x7f" + (65536).to_bytes(8, "big") + bytes(65536)


@asynccontextmanager
async def backend(answer: bytes, *, floods: bool, heads: list[bytes] | None = None) -> AsyncIterator[Endpoint]:
    """A backend that answers handshakes, and then sends frames without end, or closes the connection. Their `heads` are
    kept."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if heads is not None:
                heads.append(head)
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


@pytest.mark.parametrize(
    ("left", "answered", "status"),
    [
        (ConnectionAbortedError("the server stops"), ShuttingDown, 503),
        (ConnectionResetError("gone"), ClientDisconnected, 499),
    ],
)
async def test_a_client_whose_connection_ends_during_the_handshake_is_not_the_backends_failure(
    left: ConnectionError, answered: type[GatewayError], status: int
) -> None:
    """At a stop the server closes the connections that have not been accepted yet: that can be tried again."""

    def accept(headers: object) -> ByteStream:
        raise left

    origin = Origin(wire="llamacpp", operation="websocket", path="/ws")
    attempt, unused = Attempt(target=Target(backend="pc", model="m", name_there="m")), cast("Transport", None)
    async with backend(ACCEPT, floods=False) as endpoint:
        there = Backend(
            name="pc",
            upstream=OpenAIUpstream(),
            transport=unused,
            timeouts=Timeouts(),
            endpoint=endpoint,
        )
        context: Any = SimpleNamespace(
            request=WebSocketRequest(origin=origin, model="m"),
            attempt=attempt,
            current=attempt,
            accept_upgrade=accept,
            headers={"sec-websocket-key": "x"},
            writer=SimpleNamespace(serving_headers=tuple),
        )
        with pytest.raises(answered) as raised:
            await Proxy({"pc": there}, speeds=PromptSpeeds(), clock=lambda: 0.0).dispatch(context)
    assert raised.value.status == status
    assert not isinstance(raised.value, BackendBroken)


@pytest.mark.parametrize("line", [b"a: b\nc: d", b"Sec-WebSocket-Protocol: a\rb", b"a: \0"])
async def test_a_handshake_with_a_line_break_in_a_header_is_broken(line: bytes) -> None:
    answer = ACCEPT.replace(b"\r\n\r\n", b"\r\n%b\r\n\r\n" % line)
    async with backend(answer, floods=False) as endpoint:
        with pytest.raises(BackendBroken, match="did not answer the WebSocket handshake"):
            async with connect(endpoint):
                pass


@pytest.mark.parametrize("shown", [SECRET, base64.b64encode(SECRET.encode()).decode(), SECRET.encode().hex()])
async def test_a_key_that_the_backend_shows_reaches_no_client(shown: str) -> None:
    answer = ACCEPT.replace(b": x\r\n", f": x\r\nSec-WebSocket-Protocol: {shown}\r\n".encode())
    sent = b"\x81" + bytes([len(shown) + 4]) + f"a{shown}zsk".encode()
    async with (
        backend(answer + sent, floods=False) as plain,
        connect(msgspec.structs.replace(plain, key=SECRET)) as there,
        client() as (stream, theirs),
    ):
        with pytest.raises(BackendBroken):
            await there.relay(stream)
        assert shown not in str(there.headers)
        received = theirs.recv(65536)
        assert received[:3] == sent[:3] and received[len(sent) - 3 : len(sent)] == b"zsk"
        # In base64 the characters at either end belong to what stands beside the key.
        assert shown[3:-3].encode() not in received


@pytest.mark.parametrize(("key", "offered"), [(SECRET, False), (None, True)])
async def test_compression_is_not_offered_to_a_backend_whose_key_it_would_hide(key: str | None, offered: bool) -> None:
    headers = {"sec-websocket-key": "x", "sec-websocket-extensions": "permessage-deflate"}
    heads: list[bytes] = []
    async with backend(ACCEPT, floods=False, heads=heads) as plain:
        endpoint = msgspec.structs.replace(plain, key=key)
        async with open_socket(endpoint, "/v1/realtime", headers, (), Timeouts()):
            pass
    assert (b"permessage-deflate" in heads[0]) is offered


async def test_extensions_that_were_not_offered_are_a_broken_answer() -> None:
    answer = ACCEPT.replace(b": x\r\n", b": x\r\nSec-WebSocket-Extensions: permessage-deflate\r\n")
    async with backend(answer, floods=False) as plain:
        with pytest.raises(BackendBroken, match="extensions that were not offered"):
            async with open_socket(msgspec.structs.replace(plain, key=SECRET), "/v1/realtime", {}, (), Timeouts()):
                pass

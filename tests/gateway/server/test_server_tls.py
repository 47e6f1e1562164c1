"""The server with TLS: answers, refusals, large answers, and certificates that change while it runs."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.certificates import Pair, make_pair

from hostler.gateway.asgi import Receive, Scope, Send
from hostler.gateway.server.http_protocol import Limits
from hostler.gateway.server.server import Server, bind
from hostler.supervisor.tls import ServerCertificate, pinned_context

pytestmark = pytest.mark.anyio

BODY = b"x" * 3_000_000


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    body = scope["scheme"].encode() if scope["path"] == "/" else BODY
    headers = [] if scope["path"] == "/stream" else [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Serving:
    def __init__(self, address: Any, cert: str) -> None:
        self.address = address
        self.cert = cert

    async def ask(self, request: bytes, cert: str | None = None) -> bytes:
        """Everything that is received until the server closes the connection."""
        context = pinned_context(cert or self.cert)
        reader, writer = await asyncio.open_connection(*self.address, ssl=context, server_hostname="any")
        writer.write(request)
        try:
            return await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def served(pair: Pair) -> AsyncIterator[Serving]:
    sockets = bind([("127.0.0.1", 0)], "here")
    started = anyio.Event()
    limits = Limits(linger_s=0.1, stop_s=0.1)
    server = Server(app, drain_s=1, started_callback=started.set, limits=limits, certificate=ServerCertificate(*pair))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, sockets)
        await started.wait()
        yield Serving(sockets[0].getsockname(), pair.cert)
        server.stop()


async def test_answers_are_complete_and_the_scheme_is_https(tmp_path: Path) -> None:
    async with served(make_pair(tmp_path, "own")) as server:
        close = b"Host: a\r\nConnection: close\r\n\r\n"
        assert (await server.ask(b"GET / HTTP/1.1\r\n" + close)).endswith(b"\r\n\r\nhttps")
        assert (await server.ask(b"GET /large HTTP/1.1\r\n" + close)).endswith(BODY)
        # Without a length, the end of the connection ends the body.
        assert (await server.ask(b"GET /stream HTTP/1.0\r\nHost: a\r\n\r\n")).endswith(BODY)


async def test_what_is_no_request_is_refused_and_the_connection_closed(tmp_path: Path) -> None:
    async with served(make_pair(tmp_path, "own")) as server:
        assert (await server.ask(b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        rest = b"POST /none HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n" + b"x" * 100
        assert (await server.ask(rest)).endswith(BODY)


async def test_plain_http_gets_no_answer(tmp_path: Path) -> None:
    async with served(make_pair(tmp_path, "own")) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"200" not in await reader.read()
        writer.close()


async def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path) -> None:
    own, new = make_pair(tmp_path, "own"), make_pair(tmp_path, "new")
    async with served(own) as server:
        request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        assert b" 200 " in await server.ask(request)
        renewed = tmp_path / "copy.crt"
        renewed.write_text(new.pem())
        own.take("key", new)
        own.take("cert", new)
        with anyio.fail_after(20):
            while True:
                try:
                    assert b" 200 " in await server.ask(request, str(renewed))
                    break
                except ssl.SSLCertVerificationError:
                    await anyio.sleep(0.05)

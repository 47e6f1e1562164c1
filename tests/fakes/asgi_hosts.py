"""Servers that can run an ASGI application, each as a context that gives a client for it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import hypercorn.asyncio
import hypercorn.config
import uvicorn

from hostler.gateway.server.server import Server, bind


class _StockUvicorn(uvicorn.Server):
    """Signals are for the process that runs the tests."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def _bound() -> Iterator[list[socket.socket]]:
    """A socket on a free port. Servers close it, but not those that are cancelled since a test has failed."""
    sockets = bind([("127.0.0.1", 0)], "here")
    try:
        yield sockets
    finally:
        for each in sockets:
            each.close()


def _client(port: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)


@asynccontextmanager
async def hostler(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The server of `hostler up`."""
    started = anyio.Event()
    server = Server(app, drain_s=1, lifespan=True, started_callback=started.set)
    with _bound() as sockets:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, sockets)
            await started.wait()
            async with _client(sockets[0].getsockname()[1]) as client:
                yield client
            server.stop()


@asynccontextmanager
async def stock_uvicorn(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """`uvicorn`, with its own protocol for httptools."""
    config = uvicorn.Config(
        app, http="httptools", ws="none", lifespan="on", log_config=None, timeout_graceful_shutdown=1
    )
    server = _StockUvicorn(config)
    with _bound() as sockets:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, sockets)
            while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await anyio.sleep(0.01)
            async with _client(sockets[0].getsockname()[1]) as client:
                yield client
            server.should_exit = True


@asynccontextmanager
async def with_hypercorn(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """`hypercorn`."""
    (sock,) = bind([("127.0.0.1", 0)], "here")
    port = sock.getsockname()[1]
    config = hypercorn.config.Config()
    config.bind = [f"fd://{sock.detach()}"]
    config.graceful_timeout = 1
    config.errorlog = None
    end = anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            await hypercorn.asyncio.serve(app, config, shutdown_trigger=end.wait)

        tasks.start_soon(serve)
        async with _client(port) as client:
            yield client
        end.set()


@asynccontextmanager
async def in_process(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """No server at all: httpx calls the application, which answers as a whole."""
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1", timeout=30) as client,
    ):
        yield client


SERVERS = {"hostler": hostler, "uvicorn": stock_uvicorn, "hypercorn": with_hypercorn}
HOSTS = {**SERVERS, "in process": in_process}

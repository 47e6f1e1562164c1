"""Sockets and the HTTP server: bind, announce, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import anyio
import uvicorn

from hostler.gateway.asgi import ASGIApp
from hostler.gateway.http1 import ClientConnection, Limits

#: How often connections are looked at for having taken too long, in turns of the main loop.
_SWEEP_EVERY = 5


class ListenError(Exception):
    """An address cannot be listened on; the message says which, why, and the way out."""


def bind(addresses: Sequence[tuple[str, int]], setting: str) -> list[socket.socket]:
    """A listening socket for each address, all or none. `setting` names the configuration key for the error."""
    sockets: list[socket.socket] = []
    try:
        for host, port in addresses:
            sockets.append(_bind_one(host, port, setting))
    except ListenError:
        for each in sockets:
            each.close()
        raise
    return sockets


def _bind_one(host: str, port: int, setting: str) -> socket.socket:
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ListenError(f"cannot listen on {shown}: {error.strerror or error}; change {setting}") from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(2048)
        sock.setblocking(False)
        sock.set_inheritable(False)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ListenError(
                f"cannot listen on {shown}: another program does already; stop it or change {setting}"
            ) from error
        raise ListenError(f"cannot listen on {shown}: {error.strerror or error}; change {setting}") from error
    return sock


class Server(uvicorn.Server):
    """uvicorn, without its signal handlers: whoever runs it says when to stop.

    `started_callback` is called once the sockets accept connections.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        drain_s: float,
        started_callback: Callable[[], None] | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                http=cast(Any, partial(ClientConnection, limits=limits or Limits())),
                timeout_graceful_shutdown=max(1, round(drain_s)),
                backlog=2048,
            )
        )
        self._started_callback = started_callback
        self._stopping = anyio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started and self._started_callback is not None:
            self._started_callback()

    async def main_loop(self) -> None:
        # As uvicorn's own, but the wish to stop is heard at once instead of at the next tick.
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + 1) % 864000
            if counter % _SWEEP_EVERY == 0:
                self._sweep()
            with anyio.move_on_after(0.1):
                await self._stopping.wait()

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(cast(set[ClientConnection], self.server_state.connections)):
            connection.expire(now)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Who connected a moment ago is known only a few turns of the loop later, and would be told by nobody to go;
        # asyncio even forgets its socket if the server is closed in between. So: no more of them, then the end.
        loop = asyncio.get_running_loop()
        for server in self.servers:
            for listening in server.sockets:
                loop.remove_reader(listening.fileno())
        await anyio.sleep(0.01)
        await super().shutdown(sockets=sockets)
        # Only those who did not leave in time are left.
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    def stop(self) -> None:
        """Take no new requests, finish those in progress, then return from `serve`. A second call does not wait."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        self._stopping.set()

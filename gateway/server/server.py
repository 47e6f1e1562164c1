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
from hostler.gateway.server.protocol import ClientConnection, Limits

#: How often connections are looked at for having taken too long, in turns of the main loop.
_SWEEP_EVERY = 5

#: While the last requests end: how often is looked whether they have, in seconds.
_DRAIN_TICK_S = 0.05

#: What is cut off has this long, in seconds, for its last words, and those for their way to the client.
_LAST_WORDS_S = 2.0
_FLUSH_S = 0.2

#: What was cut off and would not end is waited for this much longer, in seconds.
_CLEAN_UP_S = 2.0


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

    `started_callback` is called once the sockets accept connections. Requests in progress have `drain_s` seconds when it
    stops; then they are cancelled, and have a moment for their last words. None is left when `serve` ends, however it
    does.
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
                interface="asgi3",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                http=cast(Any, partial(ClientConnection, limits=limits or Limits())),
                backlog=2048,
            )
        )
        self._drain_s = drain_s
        self._started_callback = started_callback
        self._stopping = anyio.Event()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets)
        finally:
            with anyio.CancelScope(shield=True):
                await self._cut_off()

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
        for connection in list(self._connections):
            connection.expire(now)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Who connected a moment ago is known only a few turns of the loop later, and would be told by nobody to go;
        # asyncio even forgets its socket if the server is closed in between. So: no more of them, then the end.
        loop = asyncio.get_running_loop()
        for server in self.servers:
            for listening in server.sockets:
                loop.remove_reader(listening.fileno())
        await anyio.sleep(0.01)
        for server in self.servers:
            server.close()
        for each in sockets or ():
            each.close()
        for connection in list(self._connections):
            connection.shutdown()
        with anyio.move_on_after(self._drain_s):
            while (self._connections or self.server_state.tasks) and not self.force_exit:
                await anyio.sleep(_DRAIN_TICK_S)
                self._sweep()

    async def _cut_off(self) -> None:
        """End whoever did not leave in time: first the requests, which may still tell their clients why."""
        for limit in (_LAST_WORDS_S, _CLEAN_UP_S):
            tasks = set(self.server_state.tasks)
            for task in tasks:
                task.cancel("the server stops")
            if tasks:
                await asyncio.wait(tasks, timeout=limit)
            with anyio.move_on_after(_FLUSH_S):
                while self._connections:  # noqa: ASYNC110 - sockets are closed in several places
                    await anyio.sleep(0.01)
            for connection in list(self._connections):
                if connection.transport is not None:
                    connection.transport.abort()

    @property
    def _connections(self) -> set[ClientConnection]:
        return cast(set[ClientConnection], self.server_state.connections)

    def stop(self) -> None:
        """Take no new requests, finish those in progress, then return from `serve`. A second call does not wait."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        self._stopping.set()

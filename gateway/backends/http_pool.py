"""The connections to one address: opening them, keeping the idle ones for a moment, closing all when told.

Nothing of requests and answers here; `Connection.reusable` decides what may be kept.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from typing import cast

import anyio
import msgspec

from hostler.adapters.errors import BackendUnavailable
from hostler.gateway.backends.http_connection import Connection

SWEEP_S = 0.5
STAGGER_S = 0.25  # the head start of each address of a name before the next one is tried (RFC 8305)

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
Address = tuple[socket.AddressFamily, SocketAddress]


class Pooling(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept: connections per address that may lie idle, and how many requests one may carry."""

    max_idle: int = 64
    max_requests: int = 100


class Pool:
    """Connections to one address. All methods but `connect` and `emptied` are done when they return."""

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext | None, pooling: Pooling, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._pooling = pooling
        self._loop = loop
        self._literal = _literal(host)
        self._far = self._literal is None or not self._literal.is_loopback
        self._addresses: list[Address] = []
        self._idle: list[Connection] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event | None = None
        self.connections: set[Connection] = set()

    def take(self) -> Connection | None:
        """The connection that was used last, if it may still be used."""
        now = self._loop.time()
        while self._idle:
            connection = self._idle.pop()
            if connection.alive and connection.idle_until > now:
                return connection
            connection.abort()
        return None

    def give_back(self, connection: Connection) -> None:
        """Keeps the connection if that is safe; closes it at once if not."""
        reader = connection.reader
        if (
            reader is not None
            and connection.reusable
            and connection.served < self._pooling.max_requests
            and len(self._idle) < self._pooling.max_idle
        ):
            connection.idle_until = self._loop.time() + reader.keep_s
            connection.rest()
            self._idle.append(connection)
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        else:
            connection.abort()

    async def connect(self, backend: str, connect_s: float) -> Connection:
        """A new connection. Raises `BackendUnavailable`."""
        connection = Connection(self._loop, backend, self._lost, far=self._far)
        self.connections.add(connection)
        try:
            async with asyncio.timeout(connect_s):
                if self._literal is not None:
                    await self._loop.create_connection(lambda: connection, self._host, self._port, ssl=self._tls)
                else:
                    sock = await self._dial()
                    name = self._host if self._tls else None
                    await self._loop.create_connection(
                        lambda: connection, sock=sock, ssl=self._tls, server_hostname=name
                    )
        except TimeoutError as error:
            self._discard(connection)
            raise BackendUnavailable(
                f'backend "{backend}" took no connection in {connect_s:g} s', backend=backend, timed_out=True
            ) from error
        except (OSError, ssl.CertificateError) as error:
            self._discard(connection)
            self._addresses.clear()
            raise BackendUnavailable(f'backend "{backend}" {_why(error)}', backend=backend) from error
        except BaseException:
            self._discard(connection)
            raise
        return connection

    def close_idle(self) -> None:
        """Closes the connections that carry no request."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.abort()

    def close_all(self) -> None:
        """Closes every connection; requests on them fail."""
        self._idle.clear()
        for connection in list(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    async def emptied(self) -> None:
        """Until the last socket is closed."""
        while self.connections:
            self._emptied = asyncio.Event()
            await self._emptied.wait()

    def _discard(self, connection: Connection) -> None:
        """For a connection that never came to be: the loop may or may not tell us of its end (uvloop does not)."""
        connection.abort()
        self._lost(connection)

    def _lost(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._emptied is not None and not self.connections:
            self._emptied.set()

    def _sweep(self) -> None:
        now = self._loop.time()
        kept = []
        for connection in self._idle:
            if connection.idle_until > now:
                kept.append(connection)
            else:
                connection.abort()
        self._idle = kept
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep) if kept else None

    async def _dial(self) -> socket.socket:
        """The first of the name's addresses to take a connection; each next one is tried a moment later."""
        if not self._addresses:
            found = await self._loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._addresses = _interleaved(
                [(family, cast(SocketAddress, address)) for family, _, _, _, address in found]
            )
        if len(self._addresses) == 1:
            return await _open(self._loop, self._addresses[0])
        winner: socket.socket | None = None
        errors: list[OSError] = []

        async def attempt(address: Address, over: anyio.Event) -> None:
            nonlocal winner
            try:
                sock = await _open(self._loop, address)
            except OSError as error:
                errors.append(error)
                over.set()
                return
            if winner is not None:
                sock.close()
                return
            winner = sock
            self._addresses.sort(key=lambda other: other != address)
            group.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as group:
                for address in list(self._addresses):
                    over = anyio.Event()
                    group.start_soon(attempt, address, over)
                    with anyio.move_on_after(STAGGER_S):
                        await over.wait()
        except BaseException:
            if winner is not None:
                winner.close()
            raise
        if winner is None:
            raise errors[0]
        return winner


async def _open(loop: asyncio.AbstractEventLoop, address: Address) -> socket.socket:
    sock = socket.socket(address[0], socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, address[1])
    except BaseException:
        sock.close()
        raise
    return sock


def _interleaved(addresses: list[Address]) -> list[Address]:
    """The addresses in their order, families taking turns, so that one dead family costs one step."""
    first = [address for address in addresses if address[0] == addresses[0][0]]
    second = [address for address in addresses if address[0] != addresses[0][0]]
    turns = [address for pair in zip(first, second, strict=False) for address in pair]
    return turns + first[len(second) :] + second[len(first) :]


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address, if it is one and not a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _why(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "refused the connection"
    if isinstance(error, socket.gaierror):
        return "has a host name that cannot be found"
    if isinstance(error, ssl.SSLError):
        return "could not agree on TLS with us"
    return "cannot be reached"

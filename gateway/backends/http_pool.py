"""The connections to one endpoint: opens them, keeps idle ones for a moment, closes them.

It knows nothing of requests and responses; `BackendConnection.reusable` decides what may be kept.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import ssl
from typing import cast

import anyio
import msgspec

from hostler.adapters.errors import BackendUnavailable, OutOfDescriptors
from hostler.gateway.backends.http_connection import BackendConnection
from hostler.gateway.backends.tls import certificate_reason
from hostler.gateway.backends.transport import SUSPENDED_FACTOR

SWEEP_S = 0.5
STAGGER_S = 0.25  # the delay before the next address of a name is tried (RFC 8305)

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
ResolvedAddress = tuple[socket.AddressFamily, SocketAddress]


class PoolSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of a pool: idle connections, and requests per connection."""

    max_idle: int = 64
    max_requests: int = 100


class Pool:
    """The connections to one endpoint."""

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext | None, pooling: PoolSettings, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._pooling = pooling
        self._loop = loop
        self._literal = _literal(host)
        near = self._literal.is_loopback if self._literal is not None else host.startswith("/")
        self._far = not near
        self._addresses: list[ResolvedAddress] = []
        self._idle: list[BackendConnection] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event | None = None
        self.connections: set[BackendConnection] = set()

    def acquire(self) -> BackendConnection | None:
        """The most recently used idle connection that is still usable, if there is one."""
        now = self._loop.time()
        while self._idle:
            connection = self._idle.pop()
            if connection.alive and connection.idle_until > now:
                return connection
            connection.abort()
        return None

    def release(self, connection: BackendConnection) -> None:
        """Keep the connection if it is reusable, else close it at once."""
        reader = connection.reader
        if (
            reader is not None
            and connection.reusable
            and connection.served < self._pooling.max_requests
            and len(self._idle) < self._pooling.max_idle
        ):
            connection.idle_until = self._loop.time() + reader.keep_s
            connection.set_idle()
            self._idle.append(connection)
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        else:
            connection.abort()

    async def connect(self, backend: str, connect_s: float) -> BackendConnection:
        """Open a connection. Raises `BackendUnavailable`."""
        started = self._loop.time()
        try:
            return await self._connect(backend, connect_s)
        except BackendUnavailable as error:
            if not error.timed_out or self._loop.time() - started < SUSPENDED_FACTOR * connect_s:
                raise
        return await self._connect(backend, connect_s)

    async def _connect(self, backend: str, connect_s: float) -> BackendConnection:
        connection = BackendConnection(self._loop, backend, self._lost, far=self._far)
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
                f'backend "{backend}" accepted no connection within {connect_s:g} s', backend=backend, timed_out=True
            ) from error
        except (OSError, ssl.CertificateError) as error:
            self._discard(connection)
            if is_out_of_descriptors(error):
                raise OutOfDescriptors from error
            self._addresses.clear()
            raise BackendUnavailable(f'backend "{backend}" {_why(error)}', backend=backend) from error
        except BaseException:
            self._discard(connection)
            raise
        return connection

    def close_idle(self) -> None:
        """Close the idle connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.abort()

    def close_all(self) -> None:
        """Close every connection; requests on them fail."""
        self._idle.clear()
        for connection in list(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    async def emptied(self) -> None:
        """Wait until the last socket is closed."""
        while self.connections:
            self._emptied = asyncio.Event()
            await self._emptied.wait()

    def _discard(self, connection: BackendConnection) -> None:
        """Discard a connection that was never made: the loop may or may not call `connection_lost` (uvloop does
        not)."""
        connection.abort()
        self._lost(connection)

    def _lost(self, connection: BackendConnection) -> None:
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
        """Connect to the first of the name's addresses that accepts; each next one is tried `STAGGER_S` later. A path is that
        of a Unix socket."""
        if self._host.startswith("/"):
            return await _open_unix(self._loop, self._host)
        if not self._addresses:
            found = await self._loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._addresses = _interleaved(
                [(family, cast(SocketAddress, address)) for family, _, _, _, address in found]
            )
        if len(self._addresses) == 1:
            return await _open(self._loop, self._addresses[0])
        winner: socket.socket | None = None
        errors: list[OSError] = []

        async def attempt(address: ResolvedAddress, failed: anyio.Event) -> None:
            nonlocal winner
            try:
                sock = await _open(self._loop, address)
            except OSError as error:
                errors.append(error)
                failed.set()
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
                    failed = anyio.Event()
                    group.start_soon(attempt, address, failed)
                    with anyio.move_on_after(STAGGER_S):
                        await failed.wait()
        except BaseException:
            if winner is not None:
                winner.close()
            raise
        if winner is None:
            raise errors[0]
        return winner


async def _open(loop: asyncio.AbstractEventLoop, address: ResolvedAddress) -> socket.socket:
    sock = socket.socket(address[0], socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, address[1])
    except BaseException:
        sock.close()
        raise
    return sock


async def _open_unix(loop: asyncio.AbstractEventLoop, path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, path)
    except BaseException:
        sock.close()
        raise
    return sock


def _interleaved(addresses: list[ResolvedAddress]) -> list[ResolvedAddress]:
    """The addresses in their order with families alternating, so that one dead family costs one delay."""
    first = [address for address in addresses if address[0] == addresses[0][0]]
    second = [address for address in addresses if address[0] != addresses[0][0]]
    pairs = [address for pair in zip(first, second, strict=False) for address in pair]
    return pairs + first[len(second) :] + second[len(first) :]


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The host as an IP address, if it is one."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_out_of_descriptors(error: BaseException | None) -> bool:
    """Whether this process or the system has no file descriptor left, by the error or those that led to it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__ or error.__context__
    return False


def _why(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "refused the connection"
    if isinstance(error, socket.gaierror):
        return "has an unknown host name"
    if (reason := certificate_reason(error)) is not None:
        return f"cannot be trusted: {reason}"
    if isinstance(error, ssl.SSLError):
        return "failed the TLS handshake"
    return "cannot be reached"

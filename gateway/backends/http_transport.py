"""The transport for local backends: HTTP/1.1 over pooled connections, with bodies returned as they arrive.

It sends requests and replaces a stale connection once. It does not interpret bodies.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Coroutine, Mapping
from types import TracebackType
from typing import Any

from hostler.adapters.base import WireRequest
from hostler.adapters.canonical import ResponseHead
from hostler.adapters.errors import BackendUnavailable, BadRequest
from hostler.gateway.backends.http_connection import BackendConnection
from hostler.gateway.backends.http_pool import Pool, PoolSettings
from hostler.gateway.backends.http_response import ResponseReader
from hostler.gateway.backends.tls import DEFAULT_TLS, tls_context
from hostler.gateway.backends.transport import Endpoint, Timeouts, TlsOptions

#: Host, port, and whether or how TLS is used.
PoolKey = tuple[str, int, bool | TlsOptions]

_METHOD = re.compile(r"[A-Z]{1,16}")
_PATH = re.compile(r"/[!-~]*")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_HOST = re.compile(r"[0-9A-Za-z._:%-]+")
# Framing, connection and credentials are the transport's own: an adapter's headers for them are dropped.
_OWN_HEADERS = frozenset(
    (
        *("host", "content-length", "content-type", "transfer-encoding", "connection", "keep-alive", "te", "trailer"),
        *("upgrade", "expect", "authorization", "cookie", "proxy-authorization", "proxy-connection", "accept-encoding"),
    )
)


class LanTransport:
    """A `Transport` for local backends. Bound to the event loop that it is first used in."""

    def __init__(self, pooling: PoolSettings | None = None) -> None:
        self._pooling = pooling or PoolSettings()
        self._pools: dict[PoolKey, Pool] = {}
        self._prefixes: dict[Endpoint, bytes] = {}
        self._heads: dict[tuple[Endpoint, str, str, str], bytes] = {}
        self._contexts: dict[TlsOptions, ssl.SSLContext] = {}

    def send(self, request: WireRequest, endpoint: Endpoint, timeouts: Timeouts) -> LanResponse:
        """See `Transport.send`."""
        return LanResponse(self, request, endpoint, timeouts)

    def close_idle(self, endpoint: Endpoint) -> None:
        """See `Transport.close_idle`."""
        if pool := self._pools.get(_pool_key(endpoint)):
            pool.close_idle()

    def close_all(self, endpoint: Endpoint) -> None:
        """See `Transport.close_all`."""
        if pool := self._pools.get(_pool_key(endpoint)):
            pool.close_all()

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        for pool in self._pools.values():
            pool.close_all()
        for pool in self._pools.values():
            await pool.emptied()

    @property
    def addresses(self) -> int:
        """The number of addresses with a pool."""
        return len(self._pools)

    def open_connections(self, endpoint: Endpoint) -> int:
        """The number of connections to this endpoint, idle or not."""
        pool = self._pools.get(_pool_key(endpoint))
        return len(pool.connections) if pool else 0

    def pool(self, endpoint: Endpoint) -> Pool:
        """The pool of this endpoint, created on first use. Pools without connections are removed then.

        Raises `BackendUnavailable` if TLS cannot be set up as configured.
        """
        key = (endpoint.host, endpoint.port, endpoint.tls) if endpoint.options is None else _pool_key(endpoint)
        pool = self._pools.get(key)
        if pool is None:
            # Each start of an engine has a port of its own: the old ones are not used again.
            for other, left in list(self._pools.items()):
                if not left.connections:
                    left.close_all()
                    del self._pools[other]
            tls = self._context(endpoint) if endpoint.tls else None
            pool = self._pools[key] = Pool(endpoint.host, endpoint.port, tls, self._pooling, asyncio.get_running_loop())
        return pool

    def _context(self, endpoint: Endpoint) -> ssl.SSLContext:
        options = DEFAULT_TLS if endpoint.options is None else endpoint.options.tls
        context = self._contexts.get(options)
        if context is None:
            context = self._contexts[options] = tls_context(options, endpoint.name)
        return context

    def head(self, request: WireRequest, endpoint: Endpoint) -> bytes:
        """The request's head as bytes. Raises `BadRequest` if a part could smuggle in another header or request."""
        if request.headers or not request.body or len(request.path) > 200:
            return self._checked_head(request, endpoint)
        # Nearly all heads differ in the content length only, which comes last.
        key = (endpoint, request.method, request.path, request.content_type)
        known = self._heads.get(key)
        if known is None:
            if len(self._heads) >= 256:
                self._heads.clear()
            checked = self._checked_head(request, endpoint)
            known = self._heads[key] = checked[: checked.rindex(b"content-length: ") + 16]
        return b"%b%d\r\n\r\n" % (known, len(request.body))

    def _checked_head(self, request: WireRequest, endpoint: Endpoint) -> bytes:
        prefix = self._prefixes.get(endpoint)
        if prefix is None:
            if len(self._prefixes) >= 256:  # each start of an engine has a key of its own
                self._prefixes.clear()
            prefix = self._prefixes[endpoint] = _endpoint_headers(endpoint)
        path = endpoint.target(request.path)
        if not (_PATH.fullmatch(path) and _METHOD.fullmatch(request.method) and _VALUE.fullmatch(request.content_type)):
            raise BadRequest("the path or the content type contains characters that cannot be sent")
        lines = [f"{request.method} {path} HTTP/1.1\r\n".encode("ascii"), prefix]
        if request.body or request.method not in ("GET", "HEAD"):
            framing = f"content-type: {request.content_type}\r\ncontent-length: {len(request.body)}\r\n"
            lines.append(framing.encode("latin-1"))
        own = {name.lower() for name, _ in endpoint.headers} if endpoint.options is not None else _OWN_HEADERS
        for name, value in request.headers:
            if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
                raise BadRequest("a header contains characters that cannot be sent")
            if name.lower() not in _OWN_HEADERS and name.lower() not in own:
                lines.append(f"{name}: {value}\r\n".encode("latin-1"))
        lines.append(b"\r\n")
        return b"".join(lines)


class LanResponse:
    """One request and its response: the context manager that `LanTransport.send` returns."""

    __slots__ = (
        "_connection", "_endpoint", "_head", "_pool", "_redactor", "_request", "_silence_s", "_timeouts", "_transport",
    )  # fmt: skip

    def __init__(self, transport: LanTransport, request: WireRequest, endpoint: Endpoint, timeouts: Timeouts) -> None:
        self._transport = transport
        self._request = request
        self._endpoint = endpoint
        self._timeouts = timeouts
        self._silence_s = timeouts.first_byte_s
        self._redactor = endpoint.redactor()
        self._pool: Pool | None = None
        self._connection: BackendConnection | None = None
        self._head: ResponseHead | None = None

    async def __aenter__(self) -> LanResponse:
        head = self._transport.head(self._request, self._endpoint)
        self._pool = pool = self._transport.pool(self._endpoint)
        kept = pool.acquire()
        connection = kept or await pool.connect(self._endpoint.name, self._timeouts.connect_s)
        while True:
            try:
                connection.start_request(self._request.method, self._endpoint.name, self._redactor)
                if not connection.send_small(head, self._request.body):
                    await connection.send_large(head, self._request.body, self._timeouts.first_byte_s)
                head_received = await connection.wait_head(self._timeouts.first_byte_s)
                self._head = head_received if self._redactor is None else self._redactor.head(head_received)
                self._connection = connection
                return self
            except BaseException as error:
                connection.abort()
                if connection is not kept or not isinstance(error, BackendUnavailable):
                    raise
            # The backend closed the idle connection before our bytes arrived; its siblings are as old, so open a new
            # one.
            pool.close_idle()
            self._pool = pool = self._transport.pool(self._endpoint)  # an empty one may have been removed meanwhile
            connection = await pool.connect(self._endpoint.name, self._timeouts.connect_s)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._pool is not None:
            self._pool.release(connection)

    @property
    def head(self) -> ResponseHead:
        """See `BackendResponse.head`."""
        assert self._head is not None, "no response yet"
        return self._head

    @property
    def headers(self) -> Mapping[str, str]:
        """See `BackendResponse.headers`."""
        headers = self._reader.headers()
        return headers if self._redactor is None else self._redactor.headers(headers)

    @property
    def until_close(self) -> bool:
        """See `BackendResponse.until_close`."""
        return self._reader.until_close

    @property
    def complete(self) -> bool:
        """See `BackendResponse.complete`."""
        connection = self._connection
        return connection is not None and connection.reader is not None and connection.reader.complete

    def segments(self) -> AsyncIterator[bytes]:
        """See `BackendResponse.segments`."""
        return self

    def __aiter__(self) -> LanResponse:
        return self

    def __anext__(self) -> Coroutine[Any, Any, bytes]:
        if self._connection is None:
            raise RuntimeError("the response was read outside of its context")
        silence_s, self._silence_s = self._silence_s, self._timeouts.between_bytes_s
        return self._connection.next(silence_s)

    def expect_first_byte(self) -> None:
        """See `BackendResponse.expect_first_byte`."""
        self._silence_s = self._timeouts.first_byte_s

    async def read(self, limit: int) -> bytes:
        """See `BackendResponse.read`."""
        pieces: list[bytes] = []
        missing = limit
        async for piece in self:
            pieces.append(piece[:missing])
            missing -= len(pieces[-1])
            if not missing:
                break
        return b"".join(pieces)

    @property
    def _reader(self) -> ResponseReader:
        connection = self._connection
        if connection is None or connection.reader is None:
            raise RuntimeError("the response was read outside of its context")
        return connection.reader


def _endpoint_headers(endpoint: Endpoint) -> bytes:
    """The headers of every request to this endpoint. Raises `ValueError` for a host or key that cannot be sent."""
    host = "localhost" if endpoint.host.startswith("/") else endpoint.host
    if not _HOST.fullmatch(host) or not _VALUE.fullmatch(endpoint.key or ""):
        raise ValueError(f'backend "{endpoint.name}": the host or the key contains characters that cannot be sent')
    host = f"[{host.partition('%')[0]}]" if ":" in host else host
    # A Unix socket has no port.
    authority = f"{host}:{endpoint.port}" if endpoint.port else host
    headers = {"host": authority, "accept-encoding": "identity"}
    if endpoint.key is not None:
        headers["authorization"] = f"Bearer {endpoint.key}"
    for name, value in endpoint.headers:
        headers.pop(name.lower(), None)
        headers[name] = value
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")


def _pool_key(endpoint: Endpoint) -> PoolKey:
    options = endpoint.options
    return (endpoint.host, endpoint.port, endpoint.tls and (options is None or options.tls))

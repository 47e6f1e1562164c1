"""The transport for remote backends and those behind proxies: httpx with connections kept for a minute, and no cookies.

Other local backends have `http_transport`. httpx's errors are translated here.
"""

from __future__ import annotations

import asyncio
import http.cookiejar
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType

import httpx

from hostler.adapters.base import WireRequest
from hostler.adapters.canonical import ResponseHead
from hostler.adapters.errors import (
    BackendBroken,
    BackendTimeout,
    BackendUnavailable,
    BadRequest,
    GatewayError,
    OutOfDescriptors,
)
from hostler.gateway.backends.connection_headers import passes
from hostler.gateway.backends.content_coding import Decompressor, UnknownCoding
from hostler.gateway.backends.environment_proxy import environment_proxy
from hostler.gateway.backends.http_pool import is_out_of_descriptors
from hostler.gateway.backends.interim_limit import InterimLimit
from hostler.gateway.backends.tls import certificate_reason, tls_context
from hostler.gateway.backends.transport import (
    SUSPENDED_FACTOR,
    BackendResponse,
    Endpoint,
    EndpointOptions,
    Timeouts,
    TlsOptions,
)

#: How long idle connections are kept, in seconds: a new TLS connection costs two or three round trips.
KEEP_S = 60.0
_OWN_HEADERS = frozenset(
    ("host", "content-length", "content-type", "authorization", "cookie", "connection", "accept-encoding", "user-agent")
)

_CLOSED = httpx.ByteStream(b"")


class HttpxTransport:
    """A `Transport` for remote backends, with a client for each way to reach them: TLS options and proxy."""

    def __init__(self) -> None:
        self._clients: dict[tuple[TlsOptions | None, str | None], httpx.AsyncClient] = {}
        self._in_flight: set[HttpxResponse] = set()

    def send(
        self, request: WireRequest, endpoint: Endpoint, timeouts: Timeouts
    ) -> AbstractAsyncContextManager[BackendResponse]:
        """See `Transport.send`."""
        return HttpxResponse(self, request, endpoint, timeouts)

    def close_idle(self, endpoint: Endpoint) -> None:
        """Does nothing: idle connections to remote backends do no harm and expire."""

    def close_all(self, endpoint: Endpoint) -> None:
        """End the waits for responses from this endpoint. Its connections expire."""
        for answer in list(self._in_flight):
            if answer.endpoint == endpoint:
                answer.expire()

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.aclose()

    def enter(self, answer: HttpxResponse) -> None:
        """The request is in flight."""
        self._in_flight.add(answer)

    def leave(self, answer: HttpxResponse) -> None:
        """The request has ended."""
        self._in_flight.discard(answer)

    def client(self, endpoint: Endpoint) -> httpx.AsyncClient:
        """The client for an endpoint, created on first use: loading the certificates takes a while.

        Raises `BackendUnavailable` with the reason if it cannot be reached as the settings and the environment say.
        """
        options = endpoint.options or EndpointOptions(proxy="environment")
        proxy, origin = _proxy(endpoint, options)
        key = (options.tls if endpoint.tls else None, proxy)
        client = self._clients.get(key)
        if client is None:
            client = self._clients[key] = _new_client(*key, origin, endpoint.name)
        return client


def connection_problem(endpoint: Endpoint, *, direct: bool) -> str | None:
    """Why an endpoint cannot be reached as the settings and the environment say, without trying; `None` if nothing is
    known against it. `direct`: no proxy is heeded. Blocks."""
    options = endpoint.options or EndpointOptions(proxy="none" if direct else "environment")
    proxy, origin = _proxy(endpoint, options)
    try:
        if endpoint.tls:
            tls_context(options.tls, endpoint.name)
        if proxy is not None:
            _new_client(None, proxy, origin, endpoint.name)
    except BackendUnavailable as error:
        return error.message.partition("cannot be reached: ")[2] or error.message
    return None


def _proxy(endpoint: Endpoint, options: EndpointOptions) -> tuple[str | None, str]:
    """The proxy's URL, and the setting or variable that names it; `None` for a direct connection."""
    if options.proxy != "environment":
        return None if options.proxy == "none" else options.proxy, "proxy"
    scheme = "https" if endpoint.tls else "http"
    return environment_proxy(scheme, endpoint.host, endpoint.port) or (None, "")


def _new_client(tls: TlsOptions | None, proxy: str | None, origin: str, backend: str) -> httpx.AsyncClient:
    """A client for plain HTTP, for which certificates do not matter, or one for TLS.

    `origin` is the setting or variable that names the proxy. Raises `BackendUnavailable`.
    """
    try:
        proxying = None if proxy is None else _proxying(proxy, tls, backend)
        client = httpx.AsyncClient(
            follow_redirects=False,
            cookies=http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[])),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=KEEP_S),
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if tls is None else tls_context(tls, backend),
            proxy=proxying,
            trust_env=False,
        )
    except ImportError:
        reason = f"{origin} names a SOCKS proxy, which requires a package; run `pip install socksio`"
        raise BackendUnavailable(f'backend "{backend}" cannot be reached: {reason}', backend=backend) from None
    except (ValueError, httpx.InvalidURL):
        reason = f"{origin} does not name a proxy that can be used: http://, https:// or socks5:// is expected"
        raise BackendUnavailable(f'backend "{backend}" cannot be reached: {reason}', backend=backend) from None
    # httpx has no setting for this.
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx.AsyncHTTPTransport):
            transport._pool._network_backend = InterimLimit(transport._pool._network_backend)
    return client


def _proxying(url: str, tls: TlsOptions | None, backend: str) -> httpx.Proxy:
    """Raises `ValueError` and `httpx.InvalidURL` for what is no URL of a proxy, `BackendUnavailable` for its certificates."""
    proxy = httpx.Proxy(url)
    if not 0 <= (proxy.url.port or 0) < 65536:
        raise ValueError("a port is at most 65535")
    if proxy.url.scheme != "https":
        return proxy
    trusted = TlsOptions(ca_file=None if tls is None else tls.ca_file)
    return httpx.Proxy(url, ssl_context=tls_context(trusted, backend))


class HttpxResponse:
    """One request and its response: the context manager that `HttpxTransport.send` returns."""

    def __init__(self, transport: HttpxTransport, request: WireRequest, endpoint: Endpoint, timeouts: Timeouts) -> None:
        self._transport = transport
        self._request = request
        self._endpoint = endpoint
        self._waiting: asyncio.Timeout | None = None
        self._timeouts = timeouts
        self._silence_s = timeouts.first_byte_s
        self._redactor = endpoint.redactor()
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None
        self._head: ResponseHead | None = None
        self._complete = False

    async def __aenter__(self) -> HttpxResponse:
        client = self._transport.client(self._endpoint)
        request = self._build(client)
        response: httpx.Response | None = None
        self._transport.enter(self)
        try:
            # Connecting has a limit of its own; the rest is for the head of the response.
            async with asyncio.timeout(self._timeouts.connect_s + self._timeouts.first_byte_s) as self._waiting:
                response = await self._send(client, request)
        except TimeoutError as error:
            raise self._timeout("did not answer in time") from error
        except AttributeError as error:
            # uvloop has no socket for a connection that was reset as soon as it was made, and anyio looks at it.
            if error.obj is not None:
                raise
            raise self._unreachable(error) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, ValueError) as error:
            raise self._translate(error) from error
        finally:
            self._waiting = None
            if response is None:
                self._transport.leave(self)
        self._response = response
        length = response.headers.get("content-length", "")
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        coded = coding not in ("", "identity")
        head = ResponseHead(
            status=response.status_code,
            media_type=response.headers.get("content-type", ""),
            length=int(length) if length.isdigit() and not coded else None,
        )
        self._head = head if self._redactor is None else self._redactor.head(head)
        try:
            self._pieces = _decompressed(response, Decompressor(coding)) if coded else response.aiter_raw()
        except UnknownCoding:
            await self.__aexit__(None, None, None)
            raise self._broken("compressed its answer although it was asked not to") from None
        return self

    async def _send(self, client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            return await client.send(request, stream=True)
        except httpx.ConnectTimeout:
            if loop.time() - started < SUSPENDED_FACTOR * self._timeouts.connect_s:
                raise
        return await client.send(request, stream=True)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._transport.leave(self)
        response, self._response = self._response, None
        if response is not None:
            try:
                await response.aclose()
            finally:
                # httpx's response and its stream refer to each other, and to the request with its body.
                response.stream = _CLOSED

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint that the request was sent to."""
        return self._endpoint

    def expire(self) -> None:
        """End the pending wait now, as if it had timed out."""
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(asyncio.get_running_loop().time())

    @property
    def head(self) -> ResponseHead:
        """See `BackendResponse.head`."""
        assert self._head is not None, "no response yet"
        return self._head

    @property
    def headers(self) -> Mapping[str, str]:
        """See `BackendResponse.headers`."""
        assert self._response is not None, "the response was read outside of its context"
        headers = {
            name: value
            for name, value in self._response.headers.items()
            if passes(name) and name != "content-encoding"  # it is decoded
        }
        return headers if self._redactor is None else self._redactor.headers(headers)

    @property
    def until_close(self) -> bool:
        """See `BackendResponse.until_close`."""
        assert self._response is not None, "the response was read outside of its context"
        headers = self._response.headers
        return "content-length" not in headers and "transfer-encoding" not in headers

    @property
    def complete(self) -> bool:
        """See `BackendResponse.complete`."""
        return self._complete

    def segments(self) -> AsyncIterator[bytes]:
        """See `BackendResponse.segments`."""
        return self

    def __aiter__(self) -> HttpxResponse:
        return self

    async def _next(self) -> bytes:
        """The next piece as it was sent; empty at the end."""
        pieces = self._pieces
        if pieces is None or self._response is None:
            raise RuntimeError("the response was read outside of its context")
        try:
            async with asyncio.timeout(self._silence_s) as self._waiting:
                data = await anext(pieces, b"")
        except TimeoutError as error:
            raise self._timeout("stopped answering") from error
        except (httpx.HTTPError, httpx.StreamError, UnknownCoding) as error:
            raise self._broken("ended its answer in the middle") from error
        finally:
            self._waiting = None
        self._silence_s = self._timeouts.between_bytes_s
        return data

    async def __anext__(self) -> bytes:
        redactor = self._redactor
        while data := await self._next():
            if redactor is None or (data := redactor.feed(data)):
                return data
        if redactor is not None and (held := redactor.rest()):
            return held
        self._complete = True
        raise StopAsyncIteration

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

    def _build(self, client: httpx.AsyncClient) -> httpx.Request:
        endpoint, request = self._endpoint, self._request
        # Only these headers are sent: the client's defaults would reveal the library.
        own = {name.lower() for name, _ in endpoint.headers}
        headers = [("Accept-Encoding", "identity"), ("Content-Type", request.content_type), ("User-Agent", "hostler")]
        headers += [(name, value) for name, value in request.headers if name.lower() not in _OWN_HEADERS]
        if endpoint.key is not None:
            headers.append(("Authorization", f"Bearer {endpoint.key}"))
        headers = [(name, value) for name, value in headers if name.lower() not in own]
        headers += endpoint.headers
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        scheme = "https" if endpoint.tls else "http"
        url = f"{scheme}://{host}:{endpoint.port}{endpoint.target(request.path)}"
        limit = httpx.Timeout(None, connect=self._timeouts.connect_s, write=self._timeouts.first_byte_s)
        content = request.body if request.body or request.method not in ("GET", "HEAD") else None
        try:
            # As our own transport sends them: httpx would take no other characters than those of ASCII.
            lines = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]
            return client.build_request(request.method, url, headers=lines, content=content, timeout=limit)
        except (httpx.InvalidURL, ValueError) as error:
            raise BadRequest("the path or a header contains characters that cannot be sent") from error

    def _translate(self, error: Exception) -> GatewayError:
        """httpx's error as a `BackendError`. Only errors before the connection was established are safe to retry
        elsewhere."""
        name = self._endpoint.name
        if is_out_of_descriptors(error):
            return OutOfDescriptors()
        if isinstance(error, httpx.ConnectTimeout):
            return BackendUnavailable(
                f'backend "{name}" accepted no connection within {self._timeouts.connect_s:g} s',
                backend=name,
                timed_out=True,
            )
        if isinstance(error, httpx.ConnectError | httpx.ProxyError | httpx.UnsupportedProtocol | httpx.PoolTimeout):
            return self._unreachable(error)
        if isinstance(error, httpx.TimeoutException):
            return self._timeout("did not accept the request in time")
        return self._broken("closed the connection without an answer")

    def _unreachable(self, error: Exception) -> BackendUnavailable:
        reason = certificate_reason(error)
        if reason is None and isinstance(error, httpx.ProxyError):
            reason = "its proxy refused the connection"
        words = "cannot be reached" if reason is None else f"cannot be reached: {reason}"
        return BackendUnavailable(f'backend "{self._endpoint.name}" {words}', backend=self._endpoint.name)

    def _timeout(self, problem: str) -> BackendTimeout:
        return BackendTimeout(f'backend "{self._endpoint.name}" {problem}', backend=self._endpoint.name)

    def _broken(self, problem: str) -> BackendBroken:
        return BackendBroken(f'backend "{self._endpoint.name}" {problem}', backend=self._endpoint.name)


async def _decompressed(response: httpx.Response, decompressor: Decompressor) -> AsyncIterator[bytes]:
    """The body in small steps, with a turn for other requests between them."""
    async for piece in response.aiter_raw():
        for step in decompressor.steps(piece):
            yield step
            await asyncio.sleep(0)
    if not decompressor.complete:
        raise UnknownCoding("incomplete")

"""The transport for remote backends: httpx with connections kept for a minute, proxies from the environment, no
cookies.

Local backends have `http_transport`. httpx's errors are translated here.
"""

from __future__ import annotations

import asyncio
import http.cookiejar
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
from hostler.adapters.redaction import redactor
from hostler.gateway.backends.base import BackendResponse, Endpoint, Timeouts
from hostler.gateway.backends.content_coding import Decompressor, UnknownCoding
from hostler.gateway.backends.http_pool import is_out_of_descriptors
from hostler.gateway.backends.interim_limit import InterimLimit

#: How long idle connections are kept, in seconds: a new TLS connection costs two or three round trips.
KEEP_S = 60.0
_NOT_FORWARDED = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer", "transfer-encoding"),
        *("upgrade", "content-length", "content-encoding", "set-cookie", "server"),
    )
)
_NOT_FORWARDED_PREFIXES = ("access-control-", "x-accel-")
_OWN_HEADERS = frozenset(
    ("host", "content-length", "content-type", "authorization", "cookie", "connection", "accept-encoding", "user-agent")
)

_CLOSED = httpx.ByteStream(b"")


class HttpxTransport:
    """A `Transport` for remote backends. `client` is for tests; `aclose` closes it all the same."""

    def __init__(self, client: httpx.AsyncClient | None = None) -> None:
        self._client = client
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
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def enter(self, answer: HttpxResponse) -> None:
        """The request is in flight."""
        self._in_flight.add(answer)

    def leave(self, answer: HttpxResponse) -> None:
        """The request has ended."""
        self._in_flight.discard(answer)

    def client(self) -> httpx.AsyncClient:
        """The client, created on first use: loading the certificates takes a while."""
        if self._client is None:
            self._client = client = httpx.AsyncClient(
                follow_redirects=False,
                cookies=http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[])),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=KEEP_S),
            )
            # httpx has no setting for this.
            for transport in (client._transport, *client._mounts.values()):
                if isinstance(transport, httpx.AsyncHTTPTransport):
                    transport._pool._network_backend = InterimLimit(transport._pool._network_backend)
        return self._client


class HttpxResponse:
    """One request and its response: the context manager that `HttpxTransport.send` returns."""

    def __init__(self, transport: HttpxTransport, request: WireRequest, endpoint: Endpoint, timeouts: Timeouts) -> None:
        self._transport = transport
        self._request = request
        self._endpoint = endpoint
        self._waiting: asyncio.Timeout | None = None
        self._timeouts = timeouts
        self._silence_s = timeouts.first_byte_s
        self._redactor = redactor(endpoint.key)
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None
        self._head: ResponseHead | None = None
        self._complete = False

    async def __aenter__(self) -> HttpxResponse:
        client = self._transport.client()
        request = self._build(client)
        response: httpx.Response | None = None
        self._transport.enter(self)
        try:
            # Connecting has a limit of its own; the rest is for the head of the response.
            async with asyncio.timeout(self._timeouts.connect_s + self._timeouts.first_byte_s) as self._waiting:
                response = await client.send(request, stream=True)
        except TimeoutError as error:
            raise self._timeout("did not answer in time") from error
        except AttributeError as error:
            # uvloop has no socket for a connection that was reset as soon as it was made, and anyio looks at it.
            if error.obj is not None:
                raise
            raise self._unreachable() from error
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
            if name not in _NOT_FORWARDED and not name.startswith(_NOT_FORWARDED_PREFIXES)
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
        headers = [("Accept-Encoding", "identity"), ("Content-Type", request.content_type), ("User-Agent", "hostler")]
        headers += [(name, value) for name, value in request.headers if name.lower() not in _OWN_HEADERS]
        if endpoint.key is not None:
            headers.append(("Authorization", f"Bearer {endpoint.key}"))
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        scheme = "https" if endpoint.tls else "http"
        url = f"{scheme}://{host}:{endpoint.port}{endpoint.base_path.rstrip('/')}{request.path}"
        limit = httpx.Timeout(None, connect=self._timeouts.connect_s, write=self._timeouts.first_byte_s)
        content = request.body if request.body or request.method not in ("GET", "HEAD") else None
        try:
            return client.build_request(request.method, url, headers=headers, content=content, timeout=limit)
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
            return self._unreachable()
        if isinstance(error, httpx.TimeoutException):
            return self._timeout("did not accept the request in time")
        return self._broken("closed the connection without an answer")

    def _unreachable(self) -> BackendUnavailable:
        return BackendUnavailable(f'backend "{self._endpoint.name}" cannot be reached', backend=self._endpoint.name)

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

"""The path to backends outside the house: TLS connections kept for a minute, proxies from the environment, no cookies.

Nearby backends have `lan.py`. httpx's errors end here.
"""

from __future__ import annotations

import asyncio
import http.cookiejar
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType

import httpx

from hostler.adapters.base import WireRequest
from hostler.adapters.errors import BackendBroken, BackendError, BackendTimeout, BackendUnavailable, BadRequest
from hostler.adapters.types import ResponseHead
from hostler.gateway.backends.base import Answer, Endpoint, Timeouts

#: A new TLS connection costs two or three round trips, so an idle one is kept for so long, in seconds.
KEEP_S = 60.0
_STAYS_HERE = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer", "transfer-encoding"),
        *("upgrade", "content-length", "content-encoding", "set-cookie", "server"),
    )
)
_STAYS_HERE_PREFIXES = ("access-control-", "x-accel-")
_OWN_HEADERS = frozenset(
    ("host", "content-length", "content-type", "authorization", "cookie", "connection", "accept-encoding", "user-agent")
)


class CloudTransport:
    """A `Transport` for backends outside the house. `client` is for tests; it is closed by `aclose` all the same."""

    def __init__(self, client: httpx.AsyncClient | None = None) -> None:
        self._client = client
        self._under_way: set[CloudAnswer] = set()

    def send(self, request: WireRequest, endpoint: Endpoint, timeouts: Timeouts) -> AbstractAsyncContextManager[Answer]:
        """See `Transport.send`."""
        return CloudAnswer(self, request, endpoint, timeouts)

    def close_idle(self, endpoint: Endpoint) -> None:
        """Nothing: idle connections to clouds do no harm and end by themselves."""

    def close_all(self, endpoint: Endpoint) -> None:
        """Whoever waits for an answer from there waits no longer. What connections there are end by themselves."""
        for answer in list(self._under_way):
            if answer.endpoint == endpoint:
                answer.give_up()

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def enter(self, answer: CloudAnswer) -> None:
        """The answer is under way."""
        self._under_way.add(answer)

    def leave(self, answer: CloudAnswer) -> None:
        """It has ended."""
        self._under_way.discard(answer)

    def client(self) -> httpx.AsyncClient:
        """The client, made on first use: loading the certificates takes a while."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                follow_redirects=False,
                cookies=http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[])),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=KEEP_S),
            )
        return self._client


class CloudAnswer:
    """One request on its way and its answer: the context manager of `CloudTransport.send`, and what it gives."""

    def __init__(self, transport: CloudTransport, request: WireRequest, endpoint: Endpoint, timeouts: Timeouts) -> None:
        self._transport = transport
        self._request = request
        self._endpoint = endpoint
        self._waiting: asyncio.Timeout | None = None
        self._timeouts = timeouts
        self._silence_s = timeouts.first_byte_s
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None
        self._head: ResponseHead | None = None
        self._complete = False

    async def __aenter__(self) -> CloudAnswer:
        client = self._transport.client()
        request = self._built(client)
        response: httpx.Response | None = None
        self._transport.enter(self)
        try:
            # The connection has a limit of its own; what is left is for the head of the answer.
            async with asyncio.timeout(self._timeouts.connect_s + self._timeouts.first_byte_s) as self._waiting:
                response = await client.send(request, stream=True)
        except TimeoutError as error:
            raise self._timeout("did not answer in time") from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, ValueError) as error:
            raise self._foreign(error) from error
        finally:
            self._waiting = None
            if response is None:
                self._transport.leave(self)
        self._response = response
        length = response.headers.get("content-length", "")
        coded = response.headers.get("content-encoding", "identity").lower() != "identity"
        self._head = ResponseHead(
            status=response.status_code,
            media_type=response.headers.get("content-type", ""),
            length=int(length) if length.isdigit() and not coded else None,
        )
        self._pieces = response.aiter_bytes()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._transport.leave(self)
        response, self._response = self._response, None
        if response is not None:
            await response.aclose()

    @property
    def endpoint(self) -> Endpoint:
        """Where it comes from."""
        return self._endpoint

    def give_up(self) -> None:
        """Nobody is there: waiting ends now, as when the time is over."""
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(asyncio.get_running_loop().time())

    @property
    def head(self) -> ResponseHead:
        """See `Answer.head`."""
        assert self._head is not None, "no answer yet"
        return self._head

    @property
    def headers(self) -> Mapping[str, str]:
        """See `Answer.headers`."""
        assert self._response is not None, "the answer was read outside of its context"
        return {
            name: value
            for name, value in self._response.headers.items()
            if name not in _STAYS_HERE and not name.startswith(_STAYS_HERE_PREFIXES)
        }

    @property
    def until_close(self) -> bool:
        """See `Answer.until_close`."""
        assert self._response is not None, "the answer was read outside of its context"
        headers = self._response.headers
        return "content-length" not in headers and "transfer-encoding" not in headers

    @property
    def complete(self) -> bool:
        """See `Answer.complete`."""
        return self._complete

    def segments(self) -> AsyncIterator[bytes]:
        """See `Answer.segments`."""
        return self

    def __aiter__(self) -> CloudAnswer:
        return self

    async def __anext__(self) -> bytes:
        pieces = self._pieces
        if pieces is None or self._response is None:
            raise RuntimeError("the answer was read outside of its context")
        try:
            async with asyncio.timeout(self._silence_s) as self._waiting:
                data = await anext(pieces, b"")
        except TimeoutError as error:
            raise self._timeout("stopped answering") from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._broken("ended its answer in the middle") from error
        finally:
            self._waiting = None
        self._silence_s = self._timeouts.between_bytes_s
        if not data:
            self._complete = True
            raise StopAsyncIteration
        return data

    async def read(self, limit: int) -> bytes:
        """See `Answer.read`."""
        pieces: list[bytes] = []
        missing = limit
        async for piece in self:
            pieces.append(piece[:missing])
            missing -= len(pieces[-1])
            if not missing:
                break
        return b"".join(pieces)

    def _built(self, client: httpx.AsyncClient) -> httpx.Request:
        endpoint, request = self._endpoint, self._request
        # Nothing that is not said here is sent: the client's defaults would tell which library this is.
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
            raise BadRequest("the path or a header holds characters that cannot be sent") from error

    def _foreign(self, error: Exception) -> BackendError:
        """httpx's error as ours. Only what happened before the connection stood is free to be tried elsewhere."""
        name = self._endpoint.name
        if isinstance(error, httpx.ConnectTimeout):
            return BackendUnavailable(
                f'backend "{name}" took no connection in {self._timeouts.connect_s:g} s', backend=name, timed_out=True
            )
        if isinstance(error, httpx.ConnectError | httpx.ProxyError | httpx.UnsupportedProtocol | httpx.PoolTimeout):
            return BackendUnavailable(f'backend "{name}" cannot be reached', backend=name)
        if isinstance(error, httpx.TimeoutException):
            return self._timeout("did not take the request in time")
        return self._broken("closed the connection without an answer")

    def _timeout(self, words: str) -> BackendTimeout:
        return BackendTimeout(f'backend "{self._endpoint.name}" {words}', backend=self._endpoint.name)

    def _broken(self, words: str) -> BackendBroken:
        return BackendBroken(f'backend "{self._endpoint.name}" {words}', backend=self._endpoint.name)

"""A supervisor on another machine over HTTP: everything but its leases, which are `RemoteHost`'s."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from types import TracebackType
from typing import TypeVar
from urllib.parse import quote

import anyio
import httpx
import msgspec

from hostler.adapters import sse
from hostler.adapters.redaction import redacted
from hostler.profiles.sources import FetchProgress
from hostler.supervisor.contract import HostStatus, ModelLease, SupervisorUnreachable
from hostler.supervisor.scheduling.estimates import SwitchEstimate
from hostler.supervisor.schemas import (
    DrainRequest,
    DrainResponse,
    ForecastResponse,
    LeaseEndRequest,
    LeaseEndResponse,
    LeaseRequest,
    PinRequest,
    PinResponse,
    PullRequest,
    SupervisorErrorResponse,
    UnloadRequest,
    UnloadResponse,
    decode_error,
)
from hostler.supervisor.socket_url import HOST, socket_path

_Answer = TypeVar("_Answer")

logger = logging.getLogger(__name__)


class ClientLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Timeouts in seconds, and retries.

    `silence_s` bounds the pauses in a stream, which the supervisor fills with pings: a longer one means that the
    connection is lost. `attempts` is how often one pull is requested when its connection is lost.
    """

    connect_s: float = 2.0
    response_s: float = 10.0
    unload_s: float = 120.0
    load_s: float = 3600.0
    silence_s: float = 30.0
    attempts: int = 5
    retry_s: float = 0.25
    max_retry_s: float = 15.0


class _ConnectionLost(Exception):
    """A connection was lost after the response had started."""


class SupervisorClient:
    """The supervisor at `url`. An async context manager; else call `aclose`.

    `reachable` is whether the last request got a response. `tls` is what certificates are checked with, if not what the
    system trusts.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        http: httpx.AsyncClient | None = None,
        limits: ClientLimits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._socket = socket_path(url)
        self._url = httpx.URL(f"http://{HOST}" if self._socket else url.rstrip("/")).copy_with(
            userinfo=b"", query=None, fragment=None
        )
        self._token = token
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = http
        self._tls = tls
        self._owns_http = http is None
        self._limits = limits or ClientLimits()
        self.reachable: bool | None = None

    @property
    def url(self) -> str:
        """Where the supervisor is, without anything secret."""
        return f"unix:{self._socket}" if self._socket else str(self._url)

    async def __aenter__(self) -> SupervisorClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections that this client opened."""
        if self._http is not None and self._owns_http:
            http, self._http = self._http, None
            await http.aclose()

    async def status(self) -> HostStatus:
        """See `Supervisor`."""
        return await self._call("GET", "/models/status", HostStatus)

    async def pull(self, model: str, *, report: Callable[[FetchProgress], None] = lambda _: None) -> None:
        """See `SupportsPulling`. After a lost connection it is requested again, which joins the running download."""
        body = PullRequest(model=model)
        pause = self._limits.retry_s
        for _ in range(self._limits.attempts - 1):
            try:
                return await self._follow_pull(body, report)
            except _ConnectionLost as lost:
                logger.info("%s", lost)
            await anyio.sleep(pause)
            pause = min(pause * 2, self._limits.max_retry_s)
        try:
            return await self._follow_pull(body, report)
        except _ConnectionLost as lost:
            raise SupervisorUnreachable(str(lost)) from None

    async def _follow_pull(self, body: PullRequest, report: Callable[[FetchProgress], None]) -> None:
        async with aclosing(self._stream("POST", "/models/pull", body=body)) as frames:
            async for name, data in frames:
                if name == "ready":
                    return
                if name == "failed":
                    raise decode_error(self._decode(redacted(data, self._token), SupervisorErrorResponse).error)
                if name == "progress":
                    report(self._decode(data, FetchProgress))
        raise _ConnectionLost(self._message("ended the stream before the download finished"))

    async def forecast(self, model: str) -> SwitchEstimate | None:
        """What a request for `model` would take and displace now. Raises `UnknownProfile`, `SupervisorUnreachable`."""
        return (await self._call("GET", "/models/forecast", ForecastResponse, params={"model": model})).forecast

    async def pin(self, model: str, pinned: bool) -> bool:
        """See `SupportsPinning`."""
        body = PinRequest(model=model, pinned=pinned)
        return (await self._call("POST", "/models/pin", PinResponse, body=body)).remembered

    async def drain(self, draining: bool) -> bool:
        """See `SupportsDraining`."""
        body = DrainRequest(draining=draining)
        return (await self._call("POST", "/drain", DrainResponse, body=body)).remembered

    async def lease_model(self, model: str, *, holder: str, seconds: float) -> ModelLease:
        """Load the model and lease it. Raises `UnknownProfile`, `SupervisorError`, `SupervisorUnreachable`."""
        body = LeaseRequest(model=model, holder=holder, seconds=seconds)
        return await self._call("POST", "/models/lease", ModelLease, body=body, read_s=self._limits.load_s)

    async def end_lease(self, lease_id: str) -> ModelLease | None:
        """End a lease. Raises `SupervisorUnreachable`."""
        return (
            await self._call("POST", "/models/lease/end", LeaseEndResponse, body=LeaseEndRequest(id=lease_id))
        ).ended

    async def unload(self, model: str, *, force: bool = True) -> None:
        """Stop the model, with `force` at once. Raises `UnknownProfile`, `SupervisorError`, `SupervisorUnreachable`."""
        body = UnloadRequest(model=model, force=force)
        await self._call("POST", "/models/unload", UnloadResponse, body=body, read_s=self._limits.unload_s)

    async def logs(self, model: str, follow: bool = False) -> AsyncGenerator[str, None]:
        """The buffered log lines of a model's engines; with `follow` future ones, too. Raises as `locate` does."""
        params = {"follow": "1"} if follow else {}
        path = f"/logs/{quote(model, safe='')}"
        # An engine may log nothing for days.
        request = self._request("GET", path, "text/plain", self._limits.response_s, params, None)
        request.extensions["timeout"]["read"] = None
        response = await self._send(request, stream=True)
        try:
            if response.status_code != 200:
                raise self._error(response.status_code, await response.aread())
            async for line in response.aiter_lines():
                yield line
        except httpx.HTTPError as error:
            raise SupervisorUnreachable(self._message(f"was lost ({type(error).__name__})")) from None
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()

    async def _call(
        self,
        method: str,
        path: str,
        kind: type[_Answer],
        *,
        params: dict[str, str] | None = None,
        body: msgspec.Struct | None = None,
        read_s: float | None = None,
    ) -> _Answer:
        request = self._request(method, path, "application/json", read_s or self._limits.response_s, params, body)
        response = await self._send(request)
        if response.status_code != 200:
            raise self._error(response.status_code, response.content)
        self._set_reachable(True)
        return self._decode(response.content, kind)

    async def _stream(
        self, method: str, path: str, *, body: msgspec.Struct | None = None
    ) -> AsyncGenerator[tuple[str, bytes], None]:
        """The events of a stream, as names and data. Raises `_ConnectionLost` once the stream has started."""
        request = self._request(method, path, "text/event-stream", self._limits.silence_s, None, body)
        response = await self._send(request, stream=True)
        try:
            if response.status_code != 200:
                raise self._error(response.status_code, await response.aread())
            self._set_reachable(True)
            events = sse.EventReader()
            async for part in response.aiter_raw():
                for event in events.feed(part):
                    yield event
        except (httpx.HTTPError, sse.EventTooLarge) as error:
            what = "was silent for too long" if isinstance(error, httpx.ReadTimeout) else "was lost"
            raise _ConnectionLost(self._message(f"{what} ({type(error).__name__})")) from None
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()

    def _request(
        self,
        method: str,
        path: str,
        accept: str,
        read_s: float,
        params: dict[str, str] | None,
        body: msgspec.Struct | None,
    ) -> httpx.Request:
        headers = {**self._headers, "Accept": accept, "Accept-Encoding": "identity"}
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = msgspec.json.encode(body)
        timeout = httpx.Timeout(read_s, connect=self._limits.connect_s)
        url = self._url.copy_with(raw_path=(self._url.path.rstrip("/") + path).encode())
        return self._client().build_request(
            method, url, params=params, headers=headers, content=content, timeout=timeout
        )

    async def _send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        """Raises `SupervisorUnreachable` if there is no response."""
        try:
            return await self._client().send(request, stream=stream, follow_redirects=False)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        except AttributeError as error:
            # uvloop has no socket for a connection that was reset as soon as it was made, and anyio looks at it.
            if error.obj is not None:
                raise
            raise self._unreachable(httpx.ConnectError("connection reset")) from None

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            # trust_env: a proxy for the internet must not see the token of a machine on the local network.
            transport = httpx.AsyncHTTPTransport(uds=self._socket) if self._socket else None
            self._http = httpx.AsyncClient(
                follow_redirects=False, trust_env=False, verify=self._tls or True, transport=transport
            )
        return self._http

    def _error(self, status: int, content: bytes) -> Exception:
        """The exception for an error response."""
        if status == 401:
            error: Exception = SupervisorUnreachable(
                self._message("rejected the token (401): set the backend's token to the supervisor's")
            )
        else:
            try:
                body = msgspec.json.decode(redacted(content, self._token), type=SupervisorErrorResponse).error
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                error = SupervisorUnreachable(self._message(f"returned {status}, but not as a supervisor does"))
            else:
                error = decode_error(body)
                if isinstance(error, SupervisorUnreachable):
                    error = SupervisorUnreachable(self._message(f"returned {status}: {body.message}"))
        self._set_reachable(not isinstance(error, SupervisorUnreachable), str(error))
        return error

    def _unreachable(self, error: httpx.HTTPError) -> SupervisorUnreachable:
        reasons: dict[type[httpx.HTTPError], str] = {
            httpx.ConnectTimeout: f"did not accept a connection within {self._limits.connect_s:g} s",
            httpx.ConnectError: "refuses connections",
            httpx.ReadTimeout: "accepted the request, but did not respond in time",
        }
        unreachable = SupervisorUnreachable(
            self._message(reasons.get(type(error), f"was lost ({type(error).__name__})"))
        )
        self._set_reachable(False, str(unreachable))
        return unreachable

    def _decode(self, content: bytes, kind: type[_Answer]) -> _Answer:
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SupervisorUnreachable(self._message(f"does not respond like a supervisor: {error}")) from None

    def _set_reachable(self, reachable: bool, why: str = "") -> None:
        if reachable is self.reachable:
            return
        self.reachable = reachable
        if reachable:
            logger.info("%s", self._message("is reachable"))
        else:
            logger.warning("%s", why)

    def _message(self, what: str) -> str:
        return f"the supervisor at {self._url} {what}"

"""Who may come in: host names, origins, the token and the size of a body. Plain ASGI, around every route."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import TypeVar

import anyio
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hostler.supervisor.schemas import SupervisorErrorBody, SupervisorErrorResponse


class FailureThrottle:
    """After `limit` wrong tokens within `window_s` an address waits. At most `remember` addresses are remembered."""

    def __init__(
        self, *, limit: int = 50, window_s: float = 60.0, remember: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._limit = limit
        self._window_s = window_s
        self._remember = remember
        self._clock = clock
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def failed(self, address: str) -> float:
        """Count a failure. Returns the seconds to wait, 0 while within the limit."""
        now = self._clock()
        since, count = self._failures.pop(address, (now, 0))
        if now - since > self._window_s:
            since, count = now, 0
        self._failures[address] = (since, count + 1)
        if len(self._failures) > self._remember:
            self._failures.popitem(last=False)
        return 0.0 if count < self._limit else self._window_s - (now - since)


BODY_LIMIT = 64 * 1024
BODY_S = 10.0

_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

# Answered before the body was read to its end: without closing, the server would go on reading what may never end.
_BODY_UNREAD = frozenset({400, 401, 403, 408, 413, 415, 421, 429})

_Body = TypeVar("_Body")


class RequestRejected(Exception):
    """A request that is not carried out; the message names the thing and the way out."""

    def __init__(
        self, status: int, kind: str, message: str, *, models: tuple[str, ...] = (), retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.body = SupervisorErrorBody(type=kind, message=message, models=models)


def error_response(status: int, body: SupervisorErrorBody, *, retry_after_s: float | None = None) -> Response:
    """`body` as JSON, with the headers that its status and its failure call for."""
    headers = {}
    if status in _BODY_UNREAD:
        headers["Connection"] = "close"
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="hostler-supervisor"'
    if body.failure is not None:
        retry_after_s = body.failure.retry_after_s
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(retry_after_s)))
    content = msgspec.json.encode(SupervisorErrorResponse(error=body))
    return Response(content, status_code=status, media_type="application/json", headers=headers)


class SupervisorAuthMiddleware:
    """ASGI middleware: lets through what names this host, does not come from a foreign page, and knows the token.

    Without a token everybody who reaches the port is let in. `open_paths` need no token, but a right host all the same.
    """

    def __init__(
        self, app: ASGIApp, *, token: str | None, allowed_hosts: Collection[str], open_paths: Collection[str]
    ) -> None:
        self._app = app
        self._digest = None if token is None else _digest(token.encode())
        self._hosts = _LOCAL | {_host_of(name) for name in allowed_hosts}
        self._open_paths = frozenset(open_paths)
        self._throttle = FailureThrottle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        given = _only(headers, b"x-request-id") or ""
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                stamps = [
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"cache-control", b"no-store"),
                ]
                kept = [(name, value) for name, value in message["headers"] if name != b"cache-control"]
                message = {**message, "headers": kept + stamps}
            await send(message)

        try:
            self._check(scope, headers)
        except RequestRejected as refusal:
            answer = error_response(refusal.status, refusal.body, retry_after_s=refusal.retry_after_s)
            await answer(scope, receive, stamped)
            return
        await self._app(scope, receive, stamped)

    def _check(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1:
            raise RequestRejected(400, "invalid_request", "a request carries exactly one Host header")
        host = _host_of(hosts[0].decode("latin-1"))
        # The address that the connection came in on is our own; a name that somebody else's DNS points at us is not.
        own = (scope.get("server") or ("",))[0]
        if host not in self._hosts and host != _host_of(own):
            raise RequestRejected(421, "misdirected", "this host does not go by that name: add it to allowed_hosts")
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        same = f"{scope['scheme']}://{hosts[0].decode('latin-1')}".lower()
        if any(origin.lower() != same for origin in origins) or _only(headers, b"sec-fetch-site") == "cross-site":
            raise RequestRejected(403, "forbidden", "requests from other sites' pages are not carried out")
        if scope["path"] not in self._open_paths:
            self._check_token(headers, (scope.get("client") or ("",))[0])

    def _check_token(self, headers: list[tuple[bytes, bytes]], address: str) -> None:
        if self._digest is None:
            return
        values = [value for name, value in headers if name == b"authorization"]
        scheme, _, token = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        # Digests are compared even if nothing was sent, so that a missing and a wrong token take the same time.
        if not hmac.compare_digest(_digest(token.strip()), self._digest) or scheme.lower() != b"bearer":
            wait_s = self._throttle.failed(address) if values else 0.0
            if wait_s > 0:
                raise RequestRejected(
                    429, "throttled", "too many wrong tokens from this address; wait, then use the right one",
                    retry_after_s=wait_s,
                )  # fmt: skip
            raise RequestRejected(
                401, "unauthenticated", "the supervisor's token is needed: Authorization: Bearer <token>"
            )


async def read_body(request: Request, kind: type[_Body]) -> _Body:
    """The JSON body as a `kind`; a `RequestRejected` if it is no JSON, too large, too slow or something else."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" or "content-encoding" in request.headers:
        raise RequestRejected(415, "unsupported_media", "send plain JSON: Content-Type: application/json")
    content = bytearray()
    try:
        with anyio.fail_after(BODY_S):
            async for part in request.stream():
                content += part
                if len(content) > BODY_LIMIT:
                    raise RequestRejected(413, "too_large", f"an order has at most {BODY_LIMIT} bytes")
    except TimeoutError:
        raise RequestRejected(408, "too_slow", f"the body did not arrive within {BODY_S:g} s") from None
    except ClientDisconnect:
        raise RequestRejected(400, "invalid_request", "the body ended early") from None
    try:
        return msgspec.json.decode(bytes(content), type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise RequestRejected(400, "invalid_request", f"the body is not what is expected here: {error}") from None


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _only(headers: list[tuple[bytes, bytes]], wanted: bytes) -> str | None:
    values = [value for name, value in headers if name == wanted]
    return values[0].decode("latin-1").strip() if len(values) == 1 else None


def _host_of(header: str) -> str:
    """`host:port`, `[v6]:port` or a bare address, without the port, in lower case."""
    text = header.strip().lower()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text.rstrip(".")

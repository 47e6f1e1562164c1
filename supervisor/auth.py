"""Authentication of HTTP requests: the `Host` check, tokens and their throttle, and the middleware of the supervisor's API.

The classes without I/O are shared with the gateway.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Final, TypeVar
from urllib.parse import urlsplit

import anyio
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hostler.supervisor.schemas import SupervisorErrorBody, SupervisorErrorResponse

BODY_LIMIT: Final = 64 * 1024
BODY_S: Final = 10.0

#: Domains that exist in local networks only: RFC 6761 and 6762, and ICANN's resolution on `internal`, to which the names
#: belong that containers have for their machine (`host.docker.internal`).
LOCAL_DOMAINS: Final = (".localhost", ".local", ".internal")
_REMEMBERED_HOSTS: Final = 256
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

# The body was not read to its end: without closing the connection the server would go on reading it.
_BODY_UNREAD: Final = frozenset({400, 401, 403, 408, 413, 415, 421, 426, 429})

_Body = TypeVar("_Body")


class FailureThrottle:
    """Limits invalid tokens: after `limit` of them within `window_s` an address has to wait. Keeps at most `remember`."""

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
        """Count a failure. Returns the seconds to wait; 0 within the limit."""
        since, count = self.count(address, 1)
        return 0.0 if count <= self._limit else self._window_s - (self._clock() - since)

    def count(self, address: str, failures: int) -> tuple[float, int]:
        """Count so many failures: since when, and how many they are by now."""
        now = self._clock()
        since, count = self._failures.pop(address, (now, 0))
        if now - since > self._window_s:
            since, count = now, 0
        counted = self._failures[address] = (since, count + failures)
        if len(self._failures) > self._remember:
            self._failures.popitem(last=False)
        return counted


class HostCheck:
    """Whether a `Host` header names this server. A foreign name that resolves to it (DNS rebinding) does not.

    Addresses do, and names that no public name server answers for: `localhost`, and those that end in `LOCAL_DOMAINS`.
    `names` are allowed besides; a `*.` at their start stands for any names below, another `*` for a part of a label.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(host_name(name) or name.lower() for name in names if "*" not in name)
        self._patterns = tuple(_host_pattern(name) for name in names if "*" in name)
        self._allowed: set[str] = set()

    def allows(self, header: str) -> bool:
        """Results are cached: this runs for every request."""
        if header in self._allowed:
            return True
        name = host_name(header)
        if name is None or not (
            name in self._names or is_local_name(name) or any(pattern.fullmatch(name) for pattern in self._patterns)
        ):
            return False
        if len(self._allowed) >= _REMEMBERED_HOSTS:
            self._allowed.clear()
        self._allowed.add(header)
        return True


def is_local_name(name: str) -> bool:
    """Whether a host's name is an address, or one that public name servers cannot resolve to anything."""
    if name == "localhost" or name.endswith(LOCAL_DOMAINS):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _host_pattern(name: str) -> re.Pattern[str]:
    start, rest = ("", name.lower()) if not name.startswith("*.") else (r"(?:[^.]+\.)+", name[2:].lower())
    return re.compile(start + "[^.]*".join(map(re.escape, rest.rstrip(".").split("*"))))


class TokenCheck:
    """Compares tokens with the valid one in constant time, whatever their lengths."""

    def __init__(self, token: str) -> None:
        """Raises `ValueError` for an empty token, which every client could send."""
        if not token.strip():
            raise ValueError("the token is empty")
        self._digest = _digest(token.encode())

    def matches(self, token: bytes) -> bool:
        return hmac.compare_digest(_digest(token), self._digest)


def host_name(value: str) -> str | None:
    """The host of `host`, `host:port`, `[v6]:port` or a bare address, in lower case; `None` if malformed."""
    value = value.strip().lower()
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        pass
    try:
        parts = urlsplit(f"//{value}")
        name, _ = parts.hostname, parts.port
    except ValueError:
        return None
    if not name or parts.path or parts.query or parts.fragment or "@" in value:
        return None
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.rstrip(".")


@lru_cache(maxsize=256)
def is_public(bound: str) -> bool:
    """Whether other machines could reach an address. Names and the paths of Unix sockets are no addresses."""
    return _is_loopback(bound) is False


def _is_loopback(address: str) -> bool | None:
    """`None` for what is no IP address. IPv4 within IPv6 counts as IPv4."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


class RequestRejected(Exception):
    """A request that the supervisor does not carry out."""

    def __init__(
        self, status: int, kind: str, message: str, *, models: tuple[str, ...] = (), retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.body = SupervisorErrorBody(type=kind, message=message, models=models)


def error_response(status: int, body: SupervisorErrorBody, *, retry_after_s: float | None = None) -> Response:
    """`body` as JSON, with the headers that its status and its failure require."""
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
    """Rejects requests with a foreign `Host` or `Origin`, or without a valid token.

    Without any token every client that reaches the port is accepted. `open_paths` need no token, but the right host.
    """

    def __init__(
        self, app: ASGIApp, *, tokens: Collection[str], allowed_hosts: Collection[str], open_paths: Collection[str]
    ) -> None:
        self._app = app
        self._tokens = [TokenCheck(token) for token in tokens]
        self._hosts = HostCheck(allowed_hosts)
        self._open_paths = frozenset(open_paths)
        self._throttle = FailureThrottle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no WebSocket here
            await send({"type": "websocket.close", "code": 1008})
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        given = _only(headers, b"x-request-id") or ""
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"cache-control", b"no-store"),
                ]
                kept = [(name, value) for name, value in message["headers"] if name != b"cache-control"]
                message = {**message, "headers": kept + added}
            await send(message)

        try:
            self._check(scope, headers)
        except RequestRejected as rejected:
            response = error_response(rejected.status, rejected.body, retry_after_s=rejected.retry_after_s)
            await response(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _check(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if len(hosts) != 1:
            raise RequestRejected(400, "invalid_request", "exactly one Host header is required")
        if not self._hosts.allows(hosts[0]):
            raise RequestRejected(
                421, "misdirected", "the Host header names an unknown host; add it to gateway.allowed_hosts"
            )
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        same = f"{scope['scheme']}://{hosts[0]}".lower()
        if any(origin.lower() != same for origin in origins) or _only(headers, b"sec-fetch-site") == "cross-site":
            raise RequestRejected(403, "forbidden", "requests from web pages of other sites are rejected")
        if not self._tokens and is_public((scope.get("server") or ("",))[0] or ""):
            raise RequestRejected(403, "forbidden", "without supervisor.token only this machine is served")
        if scope["path"].removeprefix(scope.get("root_path", "")) not in self._open_paths:
            self._check_token(headers, (scope.get("client") or ("",))[0])

    def _check_token(self, headers: list[tuple[bytes, bytes]], address: str) -> None:
        if not self._tokens:
            return
        values = [value for name, value in headers if name == b"authorization"]
        scheme, _, token = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        # Compared even if nothing was sent, so that a missing and a wrong token take the same time.
        if not sum(each.matches(token.strip()) for each in self._tokens) or scheme.lower() != b"bearer":
            wait_s = self._throttle.failed(address) if values else 0.0
            if wait_s > 0:
                raise RequestRejected(
                    429, "throttled", "too many invalid tokens from this address; wait, then send the valid one",
                    retry_after_s=wait_s,
                )  # fmt: skip
            raise RequestRejected(401, "unauthenticated", "a token is required: Authorization: Bearer <token>")


async def read_body(request: Request, kind: type[_Body]) -> _Body:
    """Decode the JSON body as a `kind`. Raises `RequestRejected` for one that is too large, too slow or invalid."""
    return decode_body(await read_content(request), kind)


async def read_content(request: Request) -> bytes:
    """The bytes of a JSON body. Raises `RequestRejected` for one that is too large or too slow."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" or "content-encoding" in request.headers:
        raise RequestRejected(415, "unsupported_media", "send plain JSON: Content-Type: application/json")
    content = bytearray()
    try:
        with anyio.fail_after(BODY_S):
            async for part in request.stream():
                content += part
                if len(content) > BODY_LIMIT:
                    raise RequestRejected(413, "too_large", f"the body exceeds {BODY_LIMIT} bytes")
    except TimeoutError:
        raise RequestRejected(408, "too_slow", f"the body did not arrive within {BODY_S:g} s") from None
    except ClientDisconnect:
        raise RequestRejected(400, "invalid_request", "the body ended early") from None
    return bytes(content)


def decode_body(content: bytes, kind: type[_Body]) -> _Body:
    """A JSON body as a `kind`. Raises `RequestRejected` for an invalid one."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise RequestRejected(400, "invalid_request", f"invalid body: {error}") from None


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _only(headers: list[tuple[bytes, bytes]], wanted: bytes) -> str | None:
    values = [value for name, value in headers if name == wanted]
    return values[0].decode("latin-1").strip() if len(values) == 1 else None

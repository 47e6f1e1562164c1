"""Host names, origins, API keys and scopes are checked before every route."""

from __future__ import annotations

import base64
import contextlib
import logging
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, unquote

import msgspec

from hostler.adapters.base import Adapter, WireResponse
from hostler.adapters.errors import (
    BadRequest,
    Forbidden,
    GatewayError,
    MisdirectedRequest,
    RateLimited,
    Unauthenticated,
    UnsupportedMediaType,
)
from hostler.adapters.local_origin import is_local_origin
from hostler.gateway.asgi import (
    CLIENT_KEY,
    HEAD,
    ROUTE_KEY,
    ASGIApp,
    Receive,
    RouteMatch,
    Scope,
    Send,
    route_path,
)
from hostler.gateway.auth.keys import KeyRing
from hostler.gateway.auth.scopes import allows
from hostler.gateway.auth.sessions import Sessions, cookie_name, from_dashboard, session_cookie
from hostler.gateway.context import Client
from hostler.gateway.routing import Router
from hostler.supervisor.auth import FailureThrottle, HostCheck, host_name, is_public

#: Invalid keys within a minute after which an address is throttled. Many clients may share an address.
WRONG_KEYS = 250


class ThrottlePeers(Protocol):
    """Other gateways that count invalid keys together with this one."""

    def failed(self, address: str) -> str:
        """An invalid key came from an address: the name under which all count it."""
        ...


class KeyThrottle(FailureThrottle):
    """Throttles addresses that send invalid keys. `peers` count with it, and name an address."""

    peers: ThrottlePeers | None = None

    def refusal(self, address: str, message: str) -> GatewayError:
        """Count an invalid key; returns the error to answer with."""
        wait_s = self.failed(address if self.peers is None else self.peers.failed(address))
        if wait_s:
            return RateLimited(
                "too many invalid API keys from this address; wait, then use a valid one", retry_after_s=wait_s
            )
        return Unauthenticated(message)


audit = logging.getLogger("hostler.audit")

_SLASHES = re.compile(rb"//+")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_NONE: dict[str, Any] = {}


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """`hosts` are further names of this gateway, `origins` the web pages that may call it."""

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    open_probes: bool = False


class _Admitted(NamedTuple):
    """The result of the checks of a head, valid for that edition of the keys.

    It is not valid for another target (method, paths and query) or other headers, in case a middleware in between changes
    them. The body's length stands between `before` and `after`.
    """

    route: RouteMatch
    parameters: dict[str, Any]
    client: Client
    edition: object
    target: tuple[object, ...]
    before: list[tuple[bytes, bytes]]
    after: list[tuple[bytes, bytes]]


class AuthMiddleware:
    """Refuses a request, or adds its route and client to the scope and passes it on.

    `login_form(method, path, accept, root_path)` returns the page that a browser without a key gets instead of an error.
    What this process would refuse goes `elsewhere` if there is another one that decides.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        router: Router,
        fallback: Adapter,
        keys: KeyRing | None,
        rules: Rules,
        throttle: KeyThrottle,
        sessions: Sessions | None = None,
        login_form: Callable[[str, str, str, str], WireResponse | None] = lambda *_: None,
        elsewhere: ASGIApp | None = None,
    ) -> None:
        self.app = app
        self._login_form = login_form
        self._elsewhere = elsewhere
        self._router = router
        self._fallback = fallback
        self._keys = keys
        self._rules = rules
        self._throttle = throttle
        self._sessions = sessions
        self._hosts = HostCheck((*rules.hosts, socket.gethostname()))

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        head = scope.get("extensions", _NONE).get(HEAD, _NONE)
        known: _Admitted | None = head.get("admitted")
        if known is not None:
            headers, at = scope["headers"], head["length_at"]
            if headers[:at] != known.before or headers[at + 1 :] != known.after or _target(scope) != known.target:
                del scope["extensions"][HEAD]
            elif self._keys is None or known.edition is self._keys.edition:
                scope[ROUTE_KEY], scope["path_params"], scope[CLIENT_KEY] = (
                    known.route,
                    known.parameters.copy(),
                    known.client,
                )
                return known.route.app(scope, receive, send)
        return self._check(scope, receive, send)

    async def _check(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await _refuse_websocket(scope, send)
            return
        route: RouteMatch | None = None
        origin: str | None = None
        received = scope
        if "//" in scope["path"]:
            scope = self._with_single_slashes(scope)
        try:
            headers = _headers(scope)
            self._check_host(scope, headers)
            origin = self._check_origin(scope, headers)
            if scope["method"] == "OPTIONS" and self._elsewhere is None:
                await _send(send, self._preflight(scope, headers, origin))
                return
            route = self._admit(scope, headers, origin)
        except GatewayError as error:
            if self._elsewhere is not None:
                await self._elsewhere(received, receive, send)
                return
            if isinstance(error, Unauthenticated):
                form = self._login_form(
                    scope["method"], route_path(scope), ",".join(headers.get("accept", [])), scope.get("root_path", "")
                )
                if form is not None:
                    await _send(send, form)
                    return
            adapter = (route.adapter if route else self._router.owner(scope)) or self._fallback
            response = adapter.error_response(error, route.operation if route else None)
            # The body was not read: close, or the server would go on reading what may never end.
            closing = () if scope["method"] in _SAFE_METHODS else (("Connection", "close"),)
            facts = (("X-Request-ID", f"req-{secrets.token_hex(8)}"), *closing, *_cors(origin))
            await _send(send, _with_headers(response, facts), head=scope["method"] == "HEAD")
            return
        if origin is not None:
            send = _adding(send, _cors(origin))
        # Starlette's error handling is for the gateway's own routes: the pipeline answers errors in its protocol.
        app = self.app if route.adapter is None else route.app
        await app(scope, receive, send)

    def _with_single_slashes(self, scope: Scope) -> Scope:
        """The scope with each run of slashes as one, unless it is for a protocol that answers such paths itself.

        They come from base URLs that end in a slash.
        """
        raw = _SLASHES.sub(b"/", scope.get("raw_path") or quote(scope["path"]).encode())
        clean = {**scope, "path": unquote(raw.decode("latin-1")), "raw_path": raw}
        with contextlib.suppress(GatewayError):
            adapter = self._router.find(clean)[0].adapter
            if adapter is not None and any("//" in operation.path for operation in adapter.operations):
                return scope
        return clean

    def _check_host(self, scope: Scope, headers: dict[str, list[str]]) -> None:
        values = headers.get("host", [])
        if len(values) != 1 or not values[0]:
            raise BadRequest("exactly one Host header is required")
        bound = (scope.get("server") or ("",))[0]
        if self._keys is None and is_public(bound):
            # The own server does not listen there, but another ASGI server may.
            raise Forbidden("without API keys only loopback is served; create a key with `hostler keys add NAME`")
        if not self._hosts.allows(values[0]):
            if host_name(values[0]) is None:
                raise BadRequest("the Host header is not a host name")
            raise MisdirectedRequest("unknown Host; add the name to gateway.allowed_hosts")

    def _check_origin(self, scope: Scope, headers: dict[str, list[str]]) -> str | None:
        """The foreign origin that may read the answer; `None` without one."""
        origins = headers.get("origin", [])
        if not origins:
            if "cross-site" in headers.get("sec-fetch-site", []):
                raise Forbidden("web pages of other sites may not call this gateway; see gateway.cors_origins")
            return None
        origin = origins[0]
        if len(origins) == 1 and origin in self._rules.origins:
            return origin
        if len(origins) == 1 and _same_origin(origin, scope, headers["host"][0]):
            return None
        owner = self._router.owner(scope) if len(origins) == 1 else None
        if owner is not None and (owner.allows_origin(origin) or (self._keys is None and is_local_origin(origin))):
            return origin
        raise Forbidden("web pages of this origin may not call this gateway; see gateway.cors_origins")

    def _preflight(self, scope: Scope, headers: dict[str, list[str]], origin: str | None) -> WireResponse:
        answer: list[tuple[str, str]] = [("Vary", "Origin")]
        if origin is not None:
            requested = headers.get("access-control-request-headers", [""])[0]
            answer += [
                ("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"),
                ("Access-Control-Allow-Headers", ", ".join(_tokens(requested)) or "Authorization, Content-Type"),
                ("Access-Control-Max-Age", "600"),
                *_cors(origin),
            ]
        return WireResponse(status=204, headers=tuple(answer))

    def _admit(self, scope: Scope, headers: dict[str, list[str]], origin: str | None) -> RouteMatch:
        """Check the key before anything is revealed about routes, then the route, then the key's scope."""
        address = scope["client"][0] if scope.get("client") else "unknown"
        client = Client(name=address) if self._keys is None else self._identify(scope, headers, origin)
        if client is None:
            open_route = self._open_route(scope)
            if open_route is None:
                message = "a valid API key is required: send `Authorization: Bearer KEY` (create one with `hostler keys add NAME`)"
                presented = _presented(headers)
                # Looked up without a key as well, so that a missing one takes as long as an invalid one.
                if self._keys is not None and self._keys.is_expired(presented or ""):
                    raise Unauthenticated("this API key has expired; create another one with `hostler keys add NAME`")
                if presented is not None:
                    raise self._throttle.refusal(address, message)
                raise Unauthenticated(message)
            route, parameters = open_route
            client = Client(name=address, scopes=frozenset())
        else:
            route, parameters = self._router.find(scope)
            if not allows(client, route):
                if self._elsewhere is None:
                    audit.warning(
                        "refused %s %s for key %s: missing scope %s",
                        scope["method"],
                        route.operation.path,
                        client.name,
                        route.operation.scope,
                        extra={
                            "audit": {
                                "outcome": "refused",
                                "method": scope["method"],
                                "path": route.operation.path,
                                "key": client.name,
                                "scope": route.operation.scope,
                            }
                        },
                    )
                raise Forbidden(
                    f"this key lacks the scope {route.operation.scope!r}; create one with `hostler keys add`"
                )
        if route.operation.writes and scope["method"] not in _SAFE_METHODS:
            media_type = headers.get("content-type", [""])[0].partition(";")[0].strip().lower()
            page = "origin" in headers or "sec-fetch-site" in headers
            if media_type != "application/json" and (page or media_type not in route.operation.media_types):
                raise UnsupportedMediaType("expected Content-Type: application/json")
        scope[ROUTE_KEY] = route
        scope["path_params"] = parameters
        scope[CLIENT_KEY] = client
        self._remember(
            scope, route, parameters, client, cacheable=origin is None and _is_cacheable(client, headers, self._keys)
        )
        return route

    def _remember(
        self, scope: Scope, route: RouteMatch, parameters: dict[str, Any], client: Client, *, cacheable: bool
    ) -> None:
        """Keep the result for requests with the same head, or nothing of this request that depends on its head."""
        head = scope.get("extensions", _NONE).get(HEAD)
        if head is None:
            return
        if not cacheable or route.adapter is None:
            del scope["extensions"][HEAD]
            return
        headers, at = scope["headers"], head["length_at"]
        for key in head.keys() - {"length_at"}:
            del head[key]
        head["admitted"] = _Admitted(
            route,
            parameters,
            client,
            edition=None if self._keys is None else self._keys.edition,
            target=_target(scope),
            before=headers[:at],
            after=headers[at + 1 :],
        )

    def _identify(self, scope: Scope, headers: dict[str, list[str]], origin: str | None) -> Client | None:
        assert self._keys is not None
        presented = _presented(headers)
        if presented is None and self._sessions is not None and origin is None:
            server = scope.get("server")
            token = session_cookie(cookie_name(server[1] if server else 0), headers)
            if token is not None and from_dashboard(scope["method"], headers):
                return self._sessions.client(token)
        # A missing key is looked up like an invalid one, so that both take the same time.
        return self._keys.client(presented or "")

    def _open_route(self, scope: Scope) -> tuple[RouteMatch, dict[str, object]] | None:
        try:
            route, parameters = self._router.find(scope)
        except GatewayError:
            return None
        operation = route.operation
        if operation.scope == "open" or (operation.model_info and self._rules.open_probes):
            return route, parameters
        return None


async def _refuse_websocket(scope: Scope, send: Send) -> None:
    """WebSocket is spoken by Hostler's own server only, see `UPGRADE`; others have a type of scope for it."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    await send({"type": "websocket.http.response.start", "status": 426, "headers": [(b"upgrade", b"HTTP/1.1")]})
    await send({"type": "websocket.http.response.body", "body": b""})


def _is_cacheable(client: Client, headers: dict[str, list[str]], keys: KeyRing | None) -> bool:
    """Whether the client stays the same while the keys do: sessions and some keys expire."""
    return keys is None or (client.scopes != frozenset() and not client.expires and _presented(headers) is not None)


def _target(scope: Scope) -> tuple[object, ...]:
    paths = scope["path"], scope.get("raw_path"), scope.get("root_path")
    return scope["method"], *paths, scope["query_string"]


def _headers(scope: Scope) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    return found


def _presented(headers: dict[str, list[str]]) -> str | None:
    """The key of a request: Bearer, the password of Basic, or `x-api-key`."""
    for value in headers.get("authorization", []):
        scheme, _, rest = value.partition(" ")
        if scheme.lower() == "bearer" and rest.strip():
            return rest.strip()
        if scheme.lower() == "basic":
            try:
                pair = base64.b64decode(rest.strip(), validate=True).decode("utf-8")
            except ValueError:
                return rest
            return pair.partition(":")[2] or pair
    for value in headers.get("x-api-key", []):
        if value:
            return value
    return None


def _same_origin(origin: str, scope: Scope, host: str) -> bool:
    return origin.lower() in (f"{scope.get('scheme', 'http')}://{host.lower()}", f"https://{host.lower()}")


def _tokens(value: str) -> list[str]:
    """The well-formed header names in a comma list; everything else is dropped."""
    names = (name.strip() for name in value.split(","))
    return [name for name in names if name and all((c.isalnum() and c.isascii()) or c in "-_" for c in name)][:50]


def _cors(origin: str | None) -> tuple[tuple[str, str], ...]:
    return () if origin is None else (("Access-Control-Allow-Origin", origin), ("Vary", "Origin"))


def _with_headers(response: WireResponse, headers: Iterable[tuple[str, str]]) -> WireResponse:
    return msgspec.structs.replace(response, headers=(*response.headers, *headers))


async def _send(send: Send, response: WireResponse, *, head: bool = False) -> None:
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1", "replace")) for name, value in response.headers]
    if response.status != 204:
        headers.append((b"content-type", response.media_type.encode("latin-1")))
        headers.append((b"content-length", b"%d" % len(response.body)))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else response.body})


def _adding(send: Send, extra: Iterable[tuple[str, str]]) -> Send:
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in extra]

    async def adding(message: Scope) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *raw]}
        await send(message)

    return adding

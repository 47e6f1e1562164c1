"""Routes of adapters' operations and of the gateway itself, as one Starlette route."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Match, compile_path

from hostler.adapters.base import Adapter, Operation
from hostler.adapters.errors import MethodNotAllowed, NotFound, UpgradeRequired
from hostler.gateway.asgi import (
    ROUTE_KEY,
    UPGRADE_HEADER,
    ASGIApp,
    Receive,
    RouteMatch,
    Scope,
    Send,
    route_path,
)

_UPGRADE_HEADER = UPGRADE_HEADER.encode()


class RouteConflict(Exception):
    """Two operations have the same method and path, and no header distinguishes them."""


class Router(BaseRoute):
    """Every path the gateway answers. Exact paths cost one dictionary look-up, however many there are."""

    def __init__(self, routes: Iterable[RouteMatch]) -> None:
        self._exact: dict[str, dict[str, list[RouteMatch]]] = {}
        self._patterns: list[tuple[Any, Mapping[str, Any], dict[str, list[RouteMatch]]]] = []
        self._by_pattern: dict[str, dict[str, list[RouteMatch]]] = {}
        self._neighbours: dict[str, Adapter] = {}
        for route in routes:
            self._add(route)

    def _add(self, route: RouteMatch) -> None:
        path = route.operation.path
        if "{" in path:
            methods = self._by_pattern.get(path)
            if methods is None:
                methods = self._by_pattern[path] = {}
                regex, _, convertors = compile_path(path)
                self._patterns.append((regex, convertors, methods))
                # More specific patterns are tried first, whatever their order; the one that matches any path is last.
                self._patterns.sort(key=lambda each: -each[0].pattern.index("(?P<"))
        else:
            methods = self._exact.setdefault(path, {})
        for method in route.operation.methods:
            rivals = methods.setdefault(method, [])
            for rival in rivals:
                if _condition(rival) == _condition(route):
                    raise RouteConflict(
                        f"{method} {path} belongs to both {_owner(rival)} and {_owner(route)}; "
                        "remove one of them or distinguish them by a header"
                    )
            rivals.append(route)
            rivals.sort(key=lambda each: _condition(each) == (None, None))

        if route.adapter is not None:
            segments = path.split("/")
            for length in range(2, len(segments)):
                self._neighbours.setdefault("/".join(segments[:length]), route.adapter)

    def routes(self) -> Iterable[RouteMatch]:
        """Every route once per path, for documentation."""
        for table in (*self._exact.values(), *self._by_pattern.values()):
            seen = {id(route): route for routes in table.values() for route in routes}
            yield from seen.values()

    def find(self, scope: Scope) -> tuple[RouteMatch, dict[str, Any]]:
        """The route of a request, and the path's parameters. Raises `NotFound`, `MethodNotAllowed` or `UpgradeRequired`."""
        path = route_path(scope) if scope.get("root_path") else scope["path"]
        upgrade = scope["method"] == "GET" and _is_upgrade(scope)
        methods = self._exact.get(path)
        if methods is not None and not upgrade:
            return _choose(methods, scope), {}
        allowed: tuple[str, ...] = ()
        for regex, convertors, pattern_methods in self._patterns:
            match = regex.match(path)
            if match:
                try:
                    route = _upgrade(pattern_methods) if upgrade else _choose(pattern_methods, scope)
                except MethodNotAllowed as error:
                    allowed += error.allowed
                    continue
                if route is None:
                    continue
                return route, {name: convertors[name].convert(value) for name, value in match.groupdict().items()}
        if upgrade:
            # Clients that prefer WebSocket, such as Codex, use plain HTTP at once after this status, and after others only
            # when they have tried again several times.
            raise UpgradeRequired("WebSocket is not spoken here; send plain HTTP requests")
        if allowed:
            raise _not_allowed(scope, allowed)
        raise NotFound(f"no route for {scope['method']} {path[:200]}")

    def owner(self, scope: Scope) -> Adapter | None:
        """The adapter whose protocol an error before routing is answered in.

        For a path without a route, that is the adapter of the nearest one: the most leading segments in common.
        """
        path = route_path(scope)
        methods = self._exact.get(path)
        if methods is None:
            methods = next((table for regex, _, table in self._patterns if regex.match(path)), {})
        routes = [route for rivals in methods.values() for route in rivals]
        owner = next((route.adapter for route in routes if _matches(route.operation, scope)), None)
        segments = path.split("/")
        while owner is None and len(segments) > 2:
            segments.pop()
            owner = self._neighbours.get("/".join(segments))
        return owner

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http":
            return Match.NONE, {}
        if ROUTE_KEY in scope:
            return Match.FULL, {}
        route, parameters = self.find(scope)
        return Match.FULL, {ROUTE_KEY: route, "path_params": parameters}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await scope[ROUTE_KEY].app(scope, receive, send)


def adapter_routes(
    adapters: Iterable[Adapter],
    pipeline: ASGIApp,
    uploads: ASGIApp | None = None,
    stored: ASGIApp | None = None,
    streams: ASGIApp | None = None,
) -> list[RouteMatch]:
    """A route for every operation of every adapter, all served by `pipeline`, except for uploads by `uploads`, those that
    use stored responses by `stored`, and those about streams by `streams`."""

    def app(operation: Operation) -> ASGIApp:
        special = (
            uploads if operation.upload else stored if operation.stores else streams if operation.resumes else None
        )
        return special or pipeline

    return [
        RouteMatch(operation=operation, app=app(operation), adapter=adapter)
        for adapter in adapters
        for operation in adapter.operations
    ]


def gateway_route(
    name: str, path: str, app: ASGIApp, *, scope: str, methods: tuple[str, ...] = ("GET",), writes: bool = False
) -> RouteMatch:
    """A route of the gateway itself. `scope` is the scope that a key needs, or `open`."""
    operation = Operation(name=name, path=path, methods=methods, scope=scope, writes=writes)
    return RouteMatch(operation=operation, app=app)


def wrap(app: ASGIApp, middleware: Sequence[Middleware]) -> ASGIApp:
    """The application inside of its middleware, the first one outermost."""
    for cls, args, kwargs in reversed(middleware):
        app = cls(app, *args, **kwargs)
    return app


def _is_upgrade(scope: Scope) -> bool:
    return any(name == _UPGRADE_HEADER for name, _ in scope["headers"])


def _upgrade(methods: Mapping[str, list[RouteMatch]]) -> RouteMatch | None:
    """The route for a client that asks for WebSocket; most paths have none."""
    return next((route for route in methods.get("GET", ()) if route.operation.header == UPGRADE_HEADER), None)


def _choose(methods: Mapping[str, list[RouteMatch]], scope: Scope) -> RouteMatch:
    method = scope["method"]
    rivals = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
    if not rivals:
        raise _not_allowed(scope, tuple(methods))
    for route in rivals:
        operation = route.operation
        if (operation.header is None and operation.query is None) or _matches(operation, scope):
            return route
    operation = rivals[-1].operation
    needed = f"the header {operation.header}" if operation.header else f"the parameter {operation.query}"
    raise NotFound(f"{method} {scope['path'][:200]} requires {needed}")


def _condition(route: RouteMatch) -> tuple[str | None, str | None]:
    """The header or query parameter that distinguishes a route from others of its path."""
    return route.operation.header, route.operation.query


def _matches(operation: Operation, scope: Scope) -> bool:
    if operation.header is not None:
        wanted = operation.header.encode("latin-1")
        return any(name == wanted for name, _ in scope["headers"])
    if operation.query is not None:
        return operation.query in parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    return True


def _not_allowed(scope: Scope, allowed: Iterable[str]) -> MethodNotAllowed:
    methods = set(allowed)
    if "GET" in methods:
        methods.add("HEAD")
    names = tuple(sorted(methods))
    return MethodNotAllowed(
        f"{scope['path'][:200]} supports {' or '.join(names)}, not {scope['method'][:20]}", allowed=names
    )


def _owner(route: RouteMatch) -> str:
    name = route.adapter.name if route.adapter else "the gateway itself"
    return f"{name} ({route.operation.name})"

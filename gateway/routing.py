"""From a path to whoever answers it: adapters' operations and the gateway's own routes, as one Starlette route."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Match, compile_path

from hostler.adapters.base import Adapter, Operation
from hostler.adapters.errors import MethodNotAllowed, NotFound
from hostler.gateway.asgi import ROUTE_KEY, ASGIApp, Receive, RouteMatch, Scope, Send, route_path


class RouteConflict(Exception):
    """Two operations claim the same method and path, and no header tells them apart."""


class Router(BaseRoute):
    """Every path the gateway answers. Exact paths cost one dictionary look-up, however many there are."""

    def __init__(self, claims: Iterable[RouteMatch]) -> None:
        self._exact: dict[str, dict[str, list[RouteMatch]]] = {}
        self._patterns: list[tuple[Any, Mapping[str, Any], dict[str, list[RouteMatch]]]] = []
        self._by_pattern: dict[str, dict[str, list[RouteMatch]]] = {}
        self._neighbours: dict[str, Adapter] = {}
        for claim in claims:
            self._add(claim)

    def _add(self, claim: RouteMatch) -> None:
        path = claim.operation.path
        if "{" in path:
            methods = self._by_pattern.get(path)
            if methods is None:
                methods = self._by_pattern[path] = {}
                regex, _, convertors = compile_path(path)
                self._patterns.append((regex, convertors, methods))
                # The more a pattern says, the earlier it is tried, whoever came first; the one that any path fits is last.
                self._patterns.sort(key=lambda each: -each[0].pattern.index("(?P<"))
        else:
            methods = self._exact.setdefault(path, {})
        for method in claim.operation.methods:
            rivals = methods.setdefault(method, [])
            for rival in rivals:
                if _condition(rival) == _condition(claim):
                    raise RouteConflict(
                        f"{method} {path} is claimed by both {_owner(rival)} and {_owner(claim)}; "
                        "remove one of them or tell them apart by a header"
                    )
            rivals.append(claim)
            rivals.sort(key=lambda each: _condition(each) == (None, None))

        if claim.adapter is not None:
            segments = path.split("/")
            for length in range(2, len(segments)):
                self._neighbours.setdefault("/".join(segments[:length]), claim.adapter)

    def claims(self) -> Iterable[RouteMatch]:
        """Every claim once per path, for documentation."""
        for table in (*self._exact.values(), *self._by_pattern.values()):
            seen = {id(claim): claim for claims in table.values() for claim in claims}
            yield from seen.values()

    def find(self, scope: Scope) -> tuple[RouteMatch, dict[str, Any]]:
        """Who answers, and the path's parameters. Raises `NotFound` or `MethodNotAllowed`."""
        path = route_path(scope) if scope.get("root_path") else scope["path"]
        methods = self._exact.get(path)
        if methods is not None:
            return _choose(methods, scope), {}
        allowed: tuple[str, ...] = ()
        for regex, convertors, pattern_methods in self._patterns:
            match = regex.match(path)
            if match:
                try:
                    claim = _choose(pattern_methods, scope)
                except MethodNotAllowed as error:
                    allowed += error.allowed
                    continue
                return claim, {name: convertors[name].convert(value) for name, value in match.groupdict().items()}
        if allowed:
            raise _not_allowed(scope, allowed)
        raise NotFound(f"there is no {scope['method']} {path[:200]} here")

    def owner(self, scope: Scope) -> Adapter | None:
        """The adapter whose client is probably asking, whatever the method; for errors before a claim is found.

        For a path that nobody claims, that is the one with the nearest neighbour: the most leading segments shared.
        """
        path = route_path(scope)
        methods = self._exact.get(path)
        if methods is None:
            methods = next((table for regex, _, table in self._patterns if regex.match(path)), {})
        claims = [claim for rivals in methods.values() for claim in rivals]
        owner = next((claim.adapter for claim in claims if _meets(claim.operation, scope)), None)
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
        claim, parameters = self.find(scope)
        return Match.FULL, {ROUTE_KEY: claim, "path_params": parameters}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await scope[ROUTE_KEY].app(scope, receive, send)


def adapter_routes(adapters: Iterable[Adapter], pipeline: ASGIApp, uploads: ASGIApp | None = None) -> list[RouteMatch]:
    """A claim for every operation of every adapter, all answered by the one pipeline of layers, but for uploads."""
    return [
        RouteMatch(operation=operation, app=(uploads or pipeline) if operation.upload else pipeline, adapter=adapter)
        for adapter in adapters
        for operation in adapter.operations
    ]


def gateway_route(
    name: str, path: str, app: ASGIApp, *, scope: str, methods: tuple[str, ...] = ("GET",), writes: bool = False
) -> RouteMatch:
    """A claim for one of the gateway's own routes. `scope` is what a key must allow, or `open`."""
    operation = Operation(name=name, path=path, methods=methods, scope=scope, writes=writes)
    return RouteMatch(operation=operation, app=app)


def wrap(app: ASGIApp, middleware: Sequence[Middleware]) -> ASGIApp:
    """The application inside of its middleware, the first one outermost."""
    for cls, args, kwargs in reversed(middleware):
        app = cls(app, *args, **kwargs)
    return app


def _choose(methods: Mapping[str, list[RouteMatch]], scope: Scope) -> RouteMatch:
    method = scope["method"]
    rivals = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
    if not rivals:
        raise _not_allowed(scope, tuple(methods))
    for claim in rivals:
        operation = claim.operation
        if (operation.header is None and operation.query is None) or _meets(operation, scope):
            return claim
    operation = rivals[-1].operation
    needed = f"the header {operation.header}" if operation.header else f"the parameter {operation.query}"
    raise NotFound(f"{method} {scope['path'][:200]} needs {needed}")


def _condition(claim: RouteMatch) -> tuple[str | None, str | None]:
    """What a request must carry beside the path for this claim."""
    return claim.operation.header, claim.operation.query


def _meets(operation: Operation, scope: Scope) -> bool:
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
        f"{scope['path'][:200]} takes {' or '.join(names)}, not {scope['method'][:20]}", allowed=names
    )


def _owner(claim: RouteMatch) -> str:
    name = claim.adapter.name if claim.adapter else "the gateway itself"
    return f"{name} ({claim.operation.name})"

"""`/openapi.json`: every route of the gateway, those of the protocols among them."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from hostler.gateway.asgi import RouteMatch

_PARAMETER = re.compile(r"\{(\w+)\}")


def openapi(routes: Iterable[RouteMatch], *, version: str) -> bytes:
    """The description as JSON. A path that is also served with a trailing slash is listed once."""
    routes = list(routes)
    known = {route.operation.path for route in routes}
    paths: dict[str, dict[str, object]] = {}
    for route in routes:
        operation = route.operation
        if operation.path != "/" and operation.path.endswith("/") and operation.path.rstrip("/") in known:
            continue
        if operation.scope == "open" and operation.name != "health":
            continue  # the page's login form, for browsers
        if operation.scope == "open" and route.adapter is not None:
            continue  # a health check that other servers' clients expect
        owner = route.adapter.name if route.adapter else "hostler"
        path = operation.path.replace(":path}", "}")
        for method in operation.methods:
            entry: dict[str, object] = {
                "operationId": f"{owner}.{operation.name}.{method.lower()}.{path.strip('/').replace('/', '.')}",
                "tags": [owner],
                "responses": {"default": {"description": f"as {owner} answers"}},
            }
            if parameters := _PARAMETER.findall(path):
                entry["parameters"] = [
                    {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters
                ]
            if operation.scope != "open":
                entry["security"] = [{"key": [operation.scope]}]
            paths.setdefault(path, {})[method.lower()] = entry
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Hostler", "version": version},
            "servers": [{"url": "."}],  # wherever this document is
            "paths": paths,
            "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        }
    )

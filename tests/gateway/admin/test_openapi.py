"""The description of all routes."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.gateway.admin.openapi import openapi
from hostler.gateway.asgi import Receive, RouteMatch, Scope, Send
from hostler.gateway.routing import gateway_route


async def app(scope: Scope, receive: Receive, send: Send) -> None: ...


def paths(*routes: RouteMatch) -> dict[str, Any]:
    described: dict[str, Any] = msgspec.json.decode(openapi(routes, version="1"))
    return described["paths"]  # type: ignore[no-any-return]


def test_a_route_has_its_owner_and_scope() -> None:
    described = paths(gateway_route("load", "/admin/load", app, scope="operate", methods=("POST",)))
    assert described == {
        "/admin/load": {
            "post": {
                "operationId": "hostler.load.post.admin.load",
                "tags": ["hostler"],
                "responses": {"default": {"description": "as hostler answers"}},
                "security": [{"key": ["operate"]}],
            }
        }
    }


def test_the_health_check_needs_no_key_and_the_login_form_is_not_listed() -> None:
    described = paths(
        gateway_route("health", "/healthz", app, scope="open"), gateway_route("login", "/ui/login", app, scope="open")
    )
    assert list(described) == ["/healthz"]
    assert "security" not in described["/healthz"]["get"]


def test_a_path_with_and_without_a_slash_is_listed_once() -> None:
    described = paths(*(gateway_route("page", path, app, scope="read") for path in ("/ui", "/ui/")))
    assert list(described) == ["/ui"]

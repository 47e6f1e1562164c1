"""Who answers which path, and in whose words an unknown one is refused."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.adapters.base import Operation
from hostler.adapters.errors import MethodNotAllowed, NotFound
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.registry import load_adapters
from hostler.gateway.asgi import Receive, RouteMatch, Scope, Send
from hostler.gateway.routing import RouteConflict, Router, adapter_routes, gateway_route


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    pass


@pytest.fixture(scope="module")
def surface() -> Router:
    return Router(
        [*adapter_routes(load_adapters(), nothing), gateway_route("metrics", "/metrics", nothing, scope="read")]
    )


def asked(path: str, method: str = "GET", query: str = "", **headers: str) -> dict[str, Any]:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": raw}


@pytest.mark.parametrize(
    ("scope", "owner"),
    [
        (asked("/v1/chat/completions", "POST"), "openai"),
        (asked("/v1/models"), "openai"),
        (asked("/v1/models", anthropic_version="2023-06-01"), "anthropic"),
        (asked("/v1/models/org/model"), "openai"),
        (asked("/api/chat", "POST"), "ollama"),
        (asked("/api/v0/models/org/model"), "lmstudio"),
        (asked("/api/unheard-of"), "ollama"),
        (asked("/tokenize", "POST"), "llamacpp"),
        (asked("/unheard-of", "POST"), "llamacpp"),
        (asked("/metrics", query="model=a"), "llamacpp"),
        (asked("/metrics"), None),
    ],
)
def test_finds_the_protocol_that_a_path_belongs_to(surface: Router, scope: Scope, owner: str | None) -> None:
    claim, _ = surface.find(scope)
    assert (claim.adapter.name if claim.adapter else None) == owner


def test_a_head_request_is_answered_by_whoever_answers_get(surface: Router) -> None:
    assert surface.find(asked("/v1/models", "HEAD"))[0].adapter is not None


def test_a_wrong_method_names_the_right_ones(surface: Router) -> None:
    with pytest.raises(MethodNotAllowed) as wrong:
        surface.find(asked("/v1/chat/completions", "DELETE"))
    assert wrong.value.allowed == ("POST",)


def test_errors_before_a_claim_are_told_in_the_nearest_protocol(surface: Router) -> None:
    for scope, name in (
        (asked("/v1/models", "PATCH"), "openai"),
        (asked("/v1/models", "PATCH", anthropic_version="x"), "anthropic"),
        (asked("/api/tags", "PATCH"), "ollama"),
    ):
        owner = surface.owner(scope)
        assert owner is not None
        assert owner.name == name


def test_two_claims_of_one_path_are_refused_naming_both() -> None:
    claim = RouteMatch(operation=Operation(name="one", path="/x"), app=nothing, adapter=OpenAIAdapter())
    with pytest.raises(RouteConflict, match=r"openai \(one\) and the gateway itself \(two\)"):
        Router([claim, gateway_route("two", "/x", nothing, scope="read", methods=("POST",))])


def test_a_path_that_needs_a_header_says_so() -> None:
    operation = Operation(name="one", path="/x", header="x-wanted")
    surface = Router([RouteMatch(operation=operation, app=nothing)])
    with pytest.raises(NotFound, match="x-wanted"):
        surface.find(asked("/x", "POST"))

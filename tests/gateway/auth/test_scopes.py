"""Which operations the scopes of a key allow."""

from __future__ import annotations

import pytest

from hostler.adapters.base import Operation
from hostler.gateway.asgi import RouteMatch
from hostler.gateway.auth.scopes import allows, has_scope
from hostler.gateway.context import Client, KeyScope


async def app(*_: object) -> None:
    raise AssertionError("no request is made")


def route(scope: str, *, model_info: bool = False) -> RouteMatch:
    return RouteMatch(operation=Operation(name="x", path="/x", scope=scope, model_info=model_info), app=app)


def client(*scopes: KeyScope) -> Client:
    return Client(name="laptop", scopes=frozenset(scopes))


@pytest.mark.parametrize("scope", ["infer", "read", "operate"])
def test_a_scope_allows_its_own_operations_and_open_ones(scope: KeyScope) -> None:
    assert allows(client(scope), route(scope))
    assert allows(client(), route("open"))
    assert not allows(client(), route(scope))


def test_operate_includes_read_but_not_infer() -> None:
    assert allows(client("operate"), route("read"))
    assert not allows(client("operate"), route("infer"))
    assert not allows(client("read"), route("operate"))
    assert [scope for scope in ("infer", "read", "operate") if has_scope(client("operate"), scope)] == [
        "read",
        "operate",
    ]


def test_infer_includes_lists_of_models() -> None:
    assert allows(client("infer"), route("read", model_info=True))
    assert not allows(client("infer"), route("read"))

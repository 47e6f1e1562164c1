"""The client behind a reverse proxy, and the path it serves the gateway below."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.gateway.auth.reverse_proxy import ReverseProxyMiddleware

pytestmark = pytest.mark.anyio

TRUSTED = ("127.0.0.1", "10.0.0.0/8", "fd00::/8")


async def seen(
    *headers: tuple[str, str],
    peer: str | None = "127.0.0.1",
    path: str = "/v1/models",
    trusted: tuple[str, ...] = TRUSTED,
    root_path: str = "",
) -> dict[str, Any]:
    """The scope that the application inside sees."""
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    async def unused(*_: Any) -> Any:
        raise AssertionError("the middleware neither reads nor writes")

    scope = {
        "type": "http",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "client": None if peer is None else (peer, 5000),
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    }
    before = dict(scope)
    await ReverseProxyMiddleware(app, trusted=trusted, root_path=root_path)(scope, unused, unused)
    assert scope == before
    return dict(scopes[0])


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        (["203.0.113.7"], "203.0.113.7"),
        (["203.0.113.7, 10.0.0.9"], "203.0.113.7"),
        (["198.51.100.1", "203.0.113.7, 10.0.0.9"], "203.0.113.7"),
        (["203.0.113.7:4711"], "203.0.113.7"),
        (["[2001:db8::1]:443"], "2001:db8::1"),
        (["2001:db8::1"], "2001:db8::1"),
        (["::ffff:203.0.113.7"], "203.0.113.7"),
        (["10.0.0.3, 10.0.0.9"], "10.0.0.3"),
        (["203.0.113.7, nonsense"], "127.0.0.1"),
        ([""], "127.0.0.1"),
        ([], "127.0.0.1"),
    ],
)
async def test_the_client_is_the_last_address_that_is_no_proxy(forwarded: list[str], client: str) -> None:
    scope = await seen(*(("x-forwarded-for", line) for line in forwarded))
    assert scope["client"][0] == client


@pytest.mark.parametrize(("peer", "trusted"), [("203.0.113.9", TRUSTED), (None, TRUSTED), ("127.0.0.1", ())])
async def test_headers_of_others_are_ignored(peer: str | None, trusted: tuple[str, ...]) -> None:
    headers = (("x-forwarded-for", "198.51.100.1"), ("x-forwarded-proto", "https"))
    scope = await seen(*headers, peer=peer, trusted=trusted)
    assert scope["client"] == (None if peer is None else (peer, 5000))
    assert scope["scheme"] == "http"


async def test_a_unix_socket_can_be_trusted() -> None:
    scope = await seen(("x-forwarded-for", "198.51.100.1"), peer=None, trusted=("unix",))
    assert scope["client"][0] == "198.51.100.1"


@pytest.mark.parametrize(("value", "scheme"), [("https", "https"), ("http, HTTPS", "https"), ("gopher", "http")])
async def test_the_scheme_is_the_clients(value: str, scheme: str) -> None:
    assert (await seen(("x-forwarded-proto", value)))["scheme"] == scheme


@pytest.mark.parametrize(
    ("sent", "path"),
    [("/v1/models", "/llm/v1/models"), ("/llm/v1/models", "/llm/v1/models"), ("/llm", "/llm/"), ("/llms", "/llm/llms")],
)
async def test_a_proxy_may_strip_the_root_path_or_not(sent: str, path: str) -> None:
    scope = await seen(path=sent, root_path="/llm")
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/llm", path, path.encode())

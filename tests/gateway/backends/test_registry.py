"""Backends from their settings: order, transport, endpoint and headers."""

from __future__ import annotations

from typing import Any, cast

import pytest

from hostler.gateway.backends.base import Transport
from hostler.gateway.backends.registry import build_backends, chain_order, remote_transport
from hostler.gateway.config import BackendSettings, ConfigError, GatewaySettings, Settings
from hostler.supervisor.contract import Supervisor

LAN, REMOTE = cast(Transport, "lan"), cast(Transport, "remote")
LOCAL = cast(Supervisor, object())


def settings(chain: tuple[str, ...] | None = None, **backends: BackendSettings) -> Settings:
    return Settings(gateway=GatewaySettings(chain=chain), backends=backends)


def server(url: str = "http://127.0.0.1:9000", **fields: Any) -> BackendSettings:
    return BackendSettings(**{"kind": "openai", "url": url, "models": {"*": "m"}, **fields})


def test_the_chain_is_the_own_supervisor_and_then_the_files_order() -> None:
    assert chain_order(settings(b=server(), a=server()), LOCAL) == ("local", "b", "a")
    assert chain_order(settings(b=server(), a=server()), None) == ("b", "a")


def test_a_configured_chain_may_place_the_own_supervisor() -> None:
    assert chain_order(settings(("a", "local"), a=server()), LOCAL) == ("a", "local")
    assert chain_order(settings(("a",), a=server()), LOCAL) == ("local", "a")


def test_a_chain_cannot_name_a_supervisor_that_does_not_run() -> None:
    with pytest.raises(ConfigError, match="hostler up"):
        chain_order(settings(("local",)), None)


def test_hosts_have_no_endpoint_and_fold_answers() -> None:
    backends = build_backends(
        settings(pc=BackendSettings(kind="supervisor", url="http://pc:8080")), ["pc"], LAN, REMOTE
    )
    assert list(backends) == ["pc"]
    assert (backends["pc"].endpoint, backends["pc"].transport, backends["pc"].folds) == (None, LAN, True)


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "base_path"),
    [
        ("http://127.0.0.1:9000", "127.0.0.1", 9000, False, ""),
        ("http://box.lan/v1", "box.lan", 80, False, ""),
        ("https://cloud.example/api/v1/", "cloud.example", 443, True, "/api"),
    ],
)
def test_an_url_becomes_an_endpoint_without_its_v1(url: str, host: str, port: int, tls: bool, base_path: str) -> None:
    endpoint = build_backends(settings(b=server(url)), [], LAN, REMOTE)["b"].endpoint
    assert endpoint is not None
    assert (endpoint.host, endpoint.port, endpoint.tls, endpoint.base_path, endpoint.name) == (
        host,
        port,
        tls,
        base_path,
        "b",
    )


def test_an_url_without_a_host_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"backends\.b\.url"):
        build_backends(settings(b=server("http:///v1")), [], LAN, REMOTE)


def test_only_remote_backends_use_the_remote_transport() -> None:
    backends = build_backends(settings(near=server(), far=server("https://cloud.example")), [], LAN, REMOTE)
    assert {name: backend.transport for name, backend in backends.items()} == {"near": LAN, "far": REMOTE}
    assert remote_transport(LAN, settings(near=server())) is LAN


def test_keys_and_configured_headers_go_with_every_request() -> None:
    backends = build_backends(
        settings(
            router=server(api_key="secret", referer="https://me.example", title="Me"),
            claude=server(kind="anthropic", api_key="secret"),
        ),
        [], LAN, REMOTE,
    )  # fmt: skip
    router, claude = backends["router"], backends["claude"]
    assert router.endpoint is not None and claude.endpoint is not None
    assert router.endpoint.key == "secret"
    assert router.headers == (("HTTP-Referer", "https://me.example"), ("X-Title", "Me"))
    assert (claude.endpoint.key, claude.headers) == (None, (("x-api-key", "secret"),))

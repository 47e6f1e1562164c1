"""Backends from their settings: order, transport, endpoint and headers."""

from __future__ import annotations

from typing import Any, cast

import pytest
from fakes.requests import chat

from hostler.gateway.backend_settings import BackendSettings, BackendTimeouts
from hostler.gateway.backends.registry import build_backends, chain_order, remote_transport, with_prefix
from hostler.gateway.backends.transport import Backend, TlsOptions, Transport
from hostler.gateway.config import ConfigError
from hostler.gateway.gateway_settings import GatewaySettings
from hostler.gateway.settings import Settings
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


def test_a_backend_may_have_time_limits_of_its_own() -> None:
    own = BackendTimeouts(connect_s=9.0, between_bytes_s=5.0)
    far = BackendSettings(kind="supervisor", url="http://10.0.0.1:8080", timeouts=BackendTimeouts(first_byte_s=7.0))
    found = build_backends(settings(a=server(timeouts=own), b=server(), far=far), ["far"], LAN, REMOTE)
    usual = found["b"].timeouts
    assert (found["a"].timeouts.connect_s, found["a"].timeouts.between_bytes_s) == (9.0, 5.0)
    assert found["a"].timeouts.first_byte_s == usual.first_byte_s
    assert (found["far"].timeouts.first_byte_s, found["far"].timeouts.connect_s) == (7.0, usual.connect_s)


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


def path_of(backend: Backend) -> str:
    """The path of a chat at this backend."""
    assert backend.endpoint is not None
    request = backend.upstream.build(chat(model="m"), model="there", stream=False)
    return backend.endpoint.target(request.path)


@pytest.mark.parametrize(
    ("kind", "url", "path"),
    [
        ("openai", "http://box.lan:8000", "/v1/chat/completions"),
        ("openai", "http://box.lan:8000/", "/v1/chat/completions"),
        ("openai", "http://box.lan:8000/v1", "/v1/chat/completions"),
        ("openai", "https://openrouter.ai/api/v1", "/api/v1/chat/completions"),
        ("openai", "https://generativelanguage.googleapis.com/v1beta/openai/", "/v1beta/openai/chat/completions"),
        ("openai", "https://api.z.ai/api/paas/v4", "/api/paas/v4/chat/completions"),
        (
            "openai",
            "https://me.openai.azure.com/openai/deployments/gpt?api-version=2026-01-01",
            "/openai/deployments/gpt/chat/completions?api-version=2026-01-01",
        ),
        ("llamacpp", "http://box.lan:8080/v1", "/v1/chat/completions"),
        ("llamacpp", "http://box.lan:8080/llm", "/llm/v1/chat/completions"),
        ("lmstudio", "http://box.lan:1234/v1", "/v1/chat/completions"),
    ],
)
def test_the_path_of_an_url_is_used_as_written(kind: str, url: str, path: str) -> None:
    assert path_of(build_backends(settings(b=server(url, kind=kind)), [], LAN, REMOTE)["b"]) == path


def test_a_prefix_that_was_found_out_replaces_the_supposed_one() -> None:
    backend = build_backends(settings(b=server("http://box.lan")), [], LAN, REMOTE)["b"]
    found = with_prefix(backend, "", supposed=True)
    assert (path_of(found), found.health_path) == ("/chat/completions", "/models")
    assert path_of(with_prefix(found, "/v1", supposed=True)) == "/v1/chat/completions"


def test_an_ordinary_connection_has_no_options() -> None:
    backends = build_backends(settings(near=server(), far=server("https://cloud.example")), [], LAN, REMOTE)
    assert [backend.endpoint and backend.endpoint.options for backend in backends.values()] == [None, None]


def test_headers_query_certificates_and_proxy_are_options_of_the_connection() -> None:
    backend = server(
        "https://user:pass%20word@cloud.example?a=1",
        headers={"X-Team": "home", "X-Api-Key": "sk-other"},
        query={"api-version": "1 2"},
        ca_file="/ca.pem",
        proxy="http://proxy:3128",
    )
    endpoint = build_backends(settings(b=backend), [], LAN, REMOTE)["b"].endpoint
    assert endpoint is not None and endpoint.options is not None
    options = endpoint.options
    assert (endpoint.host, options.query, options.proxy) == (
        "cloud.example",
        "a=1&api-version=1%202",
        "http://proxy:3128",
    )
    assert options.headers == (
        ("X-Team", "home"),
        ("X-Api-Key", "sk-other"),
        ("Authorization", "Basic dXNlcjpwYXNzIHdvcmQ="),
    )
    assert options.tls == TlsOptions(ca_file="/ca.pem")
    assert {"sk-other", "pass word", "dXNlcjpwYXNzIHdvcmQ="} <= set(options.secrets)
    assert "home" not in options.secrets


def test_a_local_backend_behind_a_proxy_uses_the_remote_transport() -> None:
    backends = build_backends(settings(b=server(proxy="environment")), [], LAN, REMOTE)
    assert backends["b"].transport is REMOTE
    assert backends["b"].local


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"ALL_PROXY": "socks5://127.0.0.1:1"}, "ALL_PROXY names a SOCKS proxy"),
        ({"HTTPS_PROXY": "socks4://127.0.0.1:1"}, "HTTPS_PROXY does not name a proxy that can be used"),
        ({"SSL_CERT_FILE": "/no/such.pem"}, "SSL_CERT_FILE names /no/such.pem"),
        ({"HTTPS_PROXY": "http://[::1", "NO_PROXY": "10.0.0.0/8"}, "HTTPS_PROXY does not name a proxy"),
    ],
)
def test_nothing_in_the_environment_stops_the_start(
    variables: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    remote_transport(LAN, settings(cloud=server("https://cloud.example"), near=server()))
    assert reason in caplog.text
    assert "near" not in caplog.text


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

"""The settings of backends: what is local, how it is reached, and what their errors say."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.gateway.backend_settings import BackendSettings, PriceSettings
from hostler.gateway.config import ConfigError, read


def test_cached_tokens_have_a_price_of_their_own() -> None:
    assert PriceSettings(input=2.0, output=4.0, cached=1.0).cost(1_000_000, 500_000, 250_000) == 2.5
    assert PriceSettings(input=2.0).cost(1_000_000, 500_000, 0) == 2.0


def test_a_backend_says_itself_whether_it_is_local() -> None:
    assert BackendSettings(kind="openai", url="https://cloud.example", local=True).is_local
    assert not BackendSettings(kind="supervisor", url="http://pc", local=False).is_local


@pytest.mark.parametrize(
    ("url", "proxy", "direct", "setting"),
    [
        ("http://box.lan", None, True, "none"),
        ("http://box.lan", "environment", False, "environment"),
        ("http://box.lan", "http://proxy:3128", False, "http://proxy:3128"),
        ("https://cloud.example", None, False, "environment"),
        ("https://cloud.example", "none", False, "none"),
    ],
)
def test_only_remote_backends_heed_the_environments_proxies_unless_told(
    url: str, proxy: str | None, direct: bool, setting: str
) -> None:
    backend = BackendSettings(kind="openai", url=url, proxy=proxy)
    assert (backend.is_direct, backend.proxy_setting) == (direct, setting)


def test_an_address_is_shown_without_secrets() -> None:
    backend = BackendSettings(kind="openai", url="https://me:secret@host.example:8443/openai/v1/?api-version=1")
    assert backend.shown_url == "https://host.example:8443/openai/v1"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("url: 'http://x:0'", "must not be 0"),
        ("url: 'http://x:port'", "is not a valid address"),
        ("url: 'http://x/#models'", "must not contain #"),
        ("url: 'http://x', headers: {'a b': c}", "is not the name of a header"),
        ("url: 'http://x', headers: {Content-Length: '9'}", "is set by Hostler itself"),
        ("url: 'http://x', headers: {X-Team: \"a\\nb\"}", "one line of plain text"),
        ("url: 'http://x', headers: {X-Team: 7}", "put it in quotes"),
        ("url: 'http://x', proxy: 'proxy.lan:3128'", "must be environment, none, or a URL"),
        ("url: 'http://x', proxy: 'socks4://proxy.lan'", "must be environment, none, or a URL"),
        ("url: 'http://x', forward_headers: [x-a, Cookie]", "Cookie is never passed on"),
        ("url: 'http://x', client_key_file: key.pem", "client_cert_file is missing"),
        ("url: 'http://x', insecure: true, ca_file: ca.pem", "ca_file has no effect"),
        ("url: 'http://x', models: {fast: 'qwen*'}", "stands for many models"),
        ("url: 'http://x', models: {only: [qwen]}", "lists are for include and exclude"),
        ("url: 'http://x', describe: {m: {capabilities: [flying]}}", "expected audio or completion"),
        ("url: 'http://x', wake: {mac: nonsense}", "is not a MAC address"),
    ],
)
def test_an_invalid_backend_is_an_error_that_names_the_line(settings: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "hostler.yaml"
    file.write_text(f"backends: {{b: {{kind: openai, {settings}}}}}")
    with pytest.raises(ConfigError, match=message) as error:
        read(file, {})
    assert str(error.value).startswith(f"{file}:1: backends.b")


@pytest.mark.parametrize("setting", ["headers: {X-A: b}", "proxy: none", "ca_file: ca.pem", "models: {include: [a]}"])
def test_settings_of_plain_servers_are_refused_for_supervisors(setting: str, tmp_path: Path) -> None:
    file = tmp_path / "hostler.yaml"
    file.write_text(f"backends: {{b: {{kind: supervisor, url: 'http://x', {setting}}}}}")
    with pytest.raises(ConfigError, match=r"no effect for kind: supervisor|supervisors report their profiles"):
        read(file, {})


def test_a_backend_needs_its_kind_and_address_only(tmp_path: Path) -> None:
    file = tmp_path / "hostler.yaml"
    file.write_text("backends: {box: {kind: lmstudio, url: 'http://box.lan:1234'}}")
    assert read(file, {}).settings.backends["box"].mapping.discovers


def test_files_start_at_the_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "hostler.yaml"
    file.write_text(
        "backends: {b: {kind: openai, url: 'https://x', ca_file: ca.pem, client_cert_file: c.pem, client_key_file: k.pem}}"
    )
    backend = read(file, {}).settings.backends["b"]
    assert backend.ca_file == str(tmp_path / "ca.pem")
    assert backend.client_key_file == str(tmp_path / "k.pem")

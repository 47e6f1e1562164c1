"""The proxy that the environment names: nothing in it is an error here."""

from __future__ import annotations

import pytest

from hostler.gateway.backends.environment_proxy import bypasses_proxy, environment_proxy


@pytest.mark.parametrize(
    ("proxies", "found"),
    [
        ({}, None),
        ({"https": "http://p:1"}, ("http://p:1", "HTTPS_PROXY")),
        ({"http": "http://p:1"}, None),
        ({"all": "socks5://p:1"}, ("socks5://p:1", "ALL_PROXY")),
        ({"https": "p:1", "all": "x"}, ("http://p:1", "HTTPS_PROXY")),
        ({"https": "http://p:1", "no": ".example"}, None),
        ({"https": " "}, None),
    ],
)
def test_the_variable_of_the_scheme_comes_before_all_proxy(
    proxies: dict[str, str], found: tuple[str, str] | None
) -> None:
    assert environment_proxy("https", "cloud.example", 443, proxies) == found


@pytest.mark.parametrize(
    ("host", "no_proxy", "bypassed"),
    [
        ("cloud.example", "", False),
        ("cloud.example", "*", True),
        ("cloud.example", "example", True),
        ("cloud.example", ".example", True),
        ("cloud.example", "*.example", True),
        ("cloud.example", "other, CLOUD.example", True),
        ("notexample", "example", False),
        ("cloud.example", "cloud.example:443", True),
        ("cloud.example", "cloud.example:8443", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "192.168.0.0/16", False),
        ("10.1.2.3", "2.3", False),
        ("fd00::1", "fd00::/8", True),
        ("[fd00::1]", "[fd00::1]", True),
        ("cloud.example", "10.0.0.0/8 ::: /// [", False),
    ],
)
def test_names_domains_addresses_and_networks_are_excepted(host: str, no_proxy: str, bypassed: bool) -> None:
    assert bypasses_proxy(host, 443, no_proxy) is bypassed

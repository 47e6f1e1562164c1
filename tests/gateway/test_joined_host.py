"""What joined hosts are called, and where they stand in the chain."""

from __future__ import annotations

import pytest

from hostler.gateway.backend_settings import BackendSettings
from hostler.gateway.cluster_settings import is_host_url
from hostler.gateway.joined_host import JoinedHost, chain_with, is_configured, named_hosts
from hostler.gateway.wake_settings import WakeSettings


def test_hosts_are_called_as_they_call_themselves() -> None:
    assert named_hosts([("b1", "attic"), ("a1", "cellar")], ["cloud"]) == {"a1": "cellar", "b1": "attic"}


def test_of_several_hosts_with_a_name_the_others_carry_their_ids() -> None:
    assert named_hosts([("b2b2b2", "pc"), ("a1a1a1", "pc")], []) == {"a1a1a1": "pc", "b2b2b2": "pc-b2b2"}
    assert named_hosts([("a1a1a1", "pc")], ["pc"]) == {"a1a1a1": "pc-a1a1"}


@pytest.mark.parametrize("name", ["", "a b", "\x1b[31m", "-x", "local"])
def test_no_name_is_taken_over_that_is_none_or_means_something_else(name: str) -> None:
    (found,) = named_hosts([("a1a1a1", name)], []).values()
    assert found in ("host-a1a1", "local-a1a1")


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (["local", "cloud"], ["local", "a", "b", "cloud"]),
        (["cloud", "pc", "other"], ["cloud", "pc", "a", "b", "other"]),
        (["cloud"], ["a", "b", "cloud"]),
        ([], ["a", "b"]),
    ],
)
def test_joined_hosts_stand_behind_the_last_configured_one(order: list[str], expected: list[str]) -> None:
    assert chain_with(order, ["local", "pc"], {"b", "a"}) == tuple(expected)


def test_a_host_of_the_file_is_recognised_by_its_url() -> None:
    backends = {"pc": BackendSettings(kind="supervisor", url="http://pc.lan:8080/")}
    assert is_configured("http://pc.lan:8080", backends)
    assert not is_configured("http://other.lan:8080", backends)
    assert not is_configured("http://pc.lan:8080", {"pc": BackendSettings(kind="openai", url="http://pc.lan:8080")})


@pytest.mark.parametrize(
    ("written", "reported"),
    [
        ("http://PC.lan:80/", "http://pc.lan"),
        ("https://pc.lan.", "https://pc.lan:443"),
        ("http://[fe80:0:0::1]:8080", "http://[FE80::1]:8080/"),
        ("http://localhost:8080", "http://127.0.0.1:8080"),
        ("http://[::ffff:10.0.0.2]:8080", "http://10.0.0.2:8080"),
    ],
)
def test_a_host_of_the_file_is_recognised_by_another_spelling_of_its_url(written: str, reported: str) -> None:
    assert is_configured(reported, {"pc": BackendSettings(kind="supervisor", url=written)})
    assert not is_configured(
        reported.replace("http", "https", 1), {"pc": BackendSettings(kind="supervisor", url=written)}
    )


def test_a_renewed_certificate_makes_no_other_host() -> None:
    host = JoinedHost(name="pc", url="https://pc", token="t", certificate="one")
    assert host.is_at(JoinedHost(name="pc", url="https://pc", token="t", certificate="two"))
    assert not host.is_at(JoinedHost(name="pc", url="https://pc", token="t"))
    assert not host.is_at(JoinedHost(name="pc", url="https://pc:1", token="t", certificate="one"))


def test_a_host_is_woken_as_it_says() -> None:
    wake = WakeSettings(mac="01:23:45:67:89:ab")
    host = JoinedHost(name="pc", url="http://pc", token="t", wake=wake)
    assert host.settings.wake == wake
    assert not host.is_at(JoinedHost(name="pc", url="http://pc", token="t"))


@pytest.mark.parametrize("url", ["http://pc:8080", "https://[fe80::1]:8080/", "http://192.168.1.2"])
def test_hosts_have_plain_addresses(url: str) -> None:
    assert is_host_url(url)


@pytest.mark.parametrize(
    "url",
    ["", "pc:8080", "unix:/run/x", "file:///etc/passwd", "http://", "http://a@pc", "http://pc/x", "http://pc?x", "http://pc:0", "http://pc:x", "http://[x"],
)  # fmt: skip
def test_other_urls_are_no_hosts(url: str) -> None:
    assert not is_host_url(url)

"""Addresses that cannot all be listened on."""

from __future__ import annotations

import msgspec
import pytest

from hostler.gateway.address_conflicts import address_mistakes
from hostler.gateway.settings import Settings


def mistakes(addresses: list[str], /, ports: range | None = None, **supervisor: str) -> list[str]:
    settings = msgspec.convert({"gateway": {"listen": addresses}, "supervisor": supervisor}, Settings)
    return [each.partition(":")[0] for each in address_mistakes(settings, ports)]


@pytest.mark.parametrize(
    ("listen", "other"),
    [
        ("127.0.0.1:9000", "127.0.0.1:9000"), ("127.0.0.1:9000", "localhost:9000"), ("0.0.0.0:9000", "127.0.0.1:9000"),
        ("[::]:9000", "[::1]:9000"), (":9000", "192.168.0.2:9000"), ("unix:/run/a.sock", "unix:/run/a.sock"),
    ],
)  # fmt: skip
def test_the_same_address_twice_is_a_mistake(listen: str, other: str) -> None:
    assert mistakes([listen, other]) == ["gateway.listen[1]"]
    assert mistakes([listen], listen=other) == ["supervisor.listen"]


@pytest.mark.parametrize("other", ["127.0.0.1:9001", "127.0.0.2:9000", "[::1]:9000", "127.0.0.1:0", "unix:/run/a.sock"])
def test_different_addresses_are_none(other: str) -> None:
    assert mistakes(["127.0.0.1:9000", other]) == mistakes(["127.0.0.1:9000"], listen=other) == []
    assert mistakes(["127.0.0.1:0", "127.0.0.1:0"]) == []


def test_a_port_of_engines_is_a_mistake() -> None:
    assert mistakes(["127.0.0.1:9050"], range(9000, 9101)) == ["gateway.listen[0]"]
    assert mistakes(["127.0.0.1:8999"], range(9000, 9101), listen="127.0.0.1:9000") == ["supervisor.listen"]
    assert mistakes(["127.0.0.1:0"], range(9000, 9101)) == []


def test_the_default_address_of_supervisors_is_free_for_a_gateway() -> None:
    assert mistakes(["127.0.0.1:8080"]) == []

"""The network card by which a machine is woken."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from hostler.gateway.network_card import network_card
from hostler.gateway.wake_settings import WakeSettings


def card(family: int, address: str, broadcast: str | None = None) -> Any:
    return SimpleNamespace(family=family, address=address, netmask=None, broadcast=broadcast, ptp=None)


@pytest.mark.parametrize(
    ("address", "wake"),
    [
        ("192.168.1.9", WakeSettings(mac="01:23:45:67:89:ab", broadcast="192.168.1.255")),
        ("fe80::9", WakeSettings(mac="01:23:45:67:89:ab", broadcast="192.168.1.255")),
        ("fd00::8", WakeSettings(mac="01-23-45-67-89-ac")),
        ("192.168.2.9", None),
        ("127.0.0.1", None),
        ("10.0.0.1", None),
        ("", None),
    ],
)
def test_a_machine_is_woken_by_the_card_that_has_its_address(
    address: str, wake: WakeSettings | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cards() -> dict[str, list[Any]]:
        return {
            "lo": [card(socket.AF_INET, "127.0.0.1"), card(psutil.AF_LINK, "00:00:00:00:00:00")],
            "tun0": [card(socket.AF_INET, "10.0.0.1")],
            "eth0": [
                card(socket.AF_INET, "192.168.1.9", "192.168.1.255"),
                card(socket.AF_INET6, "fe80::9%eth0"),
                card(psutil.AF_LINK, "01:23:45:67:89:ab"),
            ],
            "ib0": [card(socket.AF_INET, "192.168.2.9"), card(psutil.AF_LINK, ":".join(["80", "00", "02", "08"] * 5))],
            "eth1": [card(socket.AF_INET6, "fd00::8"), card(psutil.AF_LINK, "01-23-45-67-89-ac")],
        }

    monkeypatch.setattr(psutil, "net_if_addrs", cards)
    assert network_card(address) == wake


def test_a_sandbox_that_hides_the_cards_costs_the_waking_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden() -> dict[str, list[Any]]:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(psutil, "net_if_addrs", hidden)
    assert network_card("192.168.1.9") is None

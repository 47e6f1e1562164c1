"""How a sleeping machine is woken: which settings cannot be."""

from __future__ import annotations

import pytest

from hostler.gateway.wake_settings import WakeSettings, wake_mistakes

MAC = "01:23:45:67:89:ab"


@pytest.mark.parametrize("mac", [MAC, "01-23-45-67-89-AB"])
@pytest.mark.parametrize("broadcast", ["255.255.255.255", "192.168.1.255:7", "10.0.0.1:65535"])
def test_addresses_of_cards_and_networks_are_accepted(mac: str, broadcast: str) -> None:
    assert [*wake_mistakes(WakeSettings(mac=mac, broadcast=broadcast))] == []


@pytest.mark.parametrize("mac", ["", "01:23:45:67:89", "01:23:45:67:89:xy", f"{MAC}:cd", f" {MAC}", f"{MAC}\n"])
def test_other_texts_are_no_mac_addresses(mac: str) -> None:
    ((key, message),) = wake_mistakes(WakeSettings(mac=mac))
    assert key == "mac" and repr(mac) in message and "01:23:45:67:89:ab" in message


@pytest.mark.parametrize(
    "broadcast", ["", "box.lan", "192.168.1", "::1", "10.0.0.255:0", "10.0.0.255:x", "10.0.0.1:65536"]
)
def test_other_texts_are_no_addresses_of_networks(broadcast: str) -> None:
    ((key, message),) = wake_mistakes(WakeSettings(mac=MAC, broadcast=broadcast))
    assert key == "broadcast" and repr(broadcast) in message

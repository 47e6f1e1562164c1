"""The network card by which this machine is woken."""

from __future__ import annotations

import socket

import psutil

from hostler.gateway.wake_settings import WakeSettings, wake_mistakes


def network_card(address: str) -> WakeSettings | None:
    """How Wake-on-LAN reaches the network card that has this address; `None` if none has, or if it cannot be woken so, as with
    InfiniBand, whose addresses are longer. Blocks."""
    try:
        cards = psutil.net_if_addrs()
    except OSError:  # a sandbox may hide them
        return None
    for addresses in cards.values():
        own = next((each for each in addresses if each.address.partition("%")[0] == address), None)
        mac = next((each.address for each in addresses if each.family == psutil.AF_LINK), "")
        if own is None or not mac.strip("0:-"):
            continue
        broadcast = next(
            (each.broadcast for each in addresses if each.family == socket.AF_INET and each.broadcast), None
        )
        found = WakeSettings(mac=mac) if broadcast is None else WakeSettings(mac=mac, broadcast=broadcast)
        return None if any(wake_mistakes(found)) else found
    return None

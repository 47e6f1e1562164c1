"""How a sleeping machine is woken."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated

import msgspec


class WakeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a sleeping machine is woken by Wake-on-LAN, and how long requests wait for it."""

    mac: str
    """MAC address of the machine's network card."""
    broadcast: str = "255.255.255.255"
    """Destination of the packet: the broadcast address of the machine's network, with a port if it is not 9."""
    wait_s: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    """How long a request waits for the machine to wake up."""


def wake_mistakes(wake: WakeSettings) -> Iterator[tuple[str, str]]:
    """What is wrong: each key, and why."""
    if not re.fullmatch(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}", wake.mac):
        yield "mac", f"{wake.mac!r} is not a MAC address; write it like 01:23:45:67:89:ab"
    host, _, port = wake.broadcast.partition(":")
    try:
        ipaddress.IPv4Address(host)
        if port and not 0 < int(port) <= 65535:
            raise ValueError
    except ValueError:
        yield (
            "broadcast",
            f"{wake.broadcast!r} is not an address; use the network's broadcast address, e.g. 192.168.1.255",
        )

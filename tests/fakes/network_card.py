"""The network card of a sleeping machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def network_card() -> Iterator[socket.socket]:
    """Where Wake-on-LAN packets arrive; reading does not wait for one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as card:
        card.bind(("127.0.0.1", 0))
        card.setblocking(False)
        yield card


def wake_settings(card: socket.socket, wait_s: float = 30) -> dict[str, Any]:
    """How to reach it, as in a configuration file."""
    return {"mac": "01:23:45:67:89:ab", "broadcast": f"127.0.0.1:{card.getsockname()[1]}", "wait_s": wait_s}


def packets(card: socket.socket) -> int:
    """How many packets have arrived since the last call."""
    found = 0
    while True:
        try:
            card.recv(200)
        except BlockingIOError:
            return found
        found += 1

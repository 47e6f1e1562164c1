"""Ports for tests that must know a port before anything listens on it, from outside the ephemeral range.

An ephemeral port that was bound and released may be taken by another server or connection a moment later. These lie
below that range, each is handed out once, and parallel test workers have separate ranges.
"""

from __future__ import annotations

import itertools
import os
import random
import socket

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
_EACH = 1200
_FIRST = 20_000 + _EACH * _WORKER
#: A random start, since other test runs may be in progress on this machine.
_PORTS = itertools.count(random.SystemRandom().randrange(_EACH))


def free_ports(count: int) -> range:
    """Consecutive unused ports."""
    for _ in range(_EACH):
        first = _FIRST + next(_PORTS) % (_EACH - count)
        ports = range(first, first + count)
        if all(map(_is_free, ports)):
            for _ in range(count - 1):
                next(_PORTS)
            return ports
    raise AssertionError("no free ports")


def free_port() -> int:
    """An unused port."""
    return free_ports(1)[0]


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        # As servers do, so that closed connections in TIME_WAIT do not count.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

"""Ports for whoever has to know one before it listens. They are none that the system gives away by itself.

A port of the system's own choice, asked for and given back, may be anybody's a moment later: another test's server, or
a connection. These lie below the system's, each is handed out once, and tests that run side by side have their own.
"""

from __future__ import annotations

import itertools
import os
import random
import socket

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
_EACH = 1200
_FIRST = 20_000 + _EACH * _WORKER
#: Somewhere of their own: other runs may be under way on this machine.
_PORTS = itertools.count(random.SystemRandom().randrange(_EACH))


def free_ports(count: int) -> range:
    """Ports in a row at which nobody listens."""
    for _ in range(_EACH):
        first = _FIRST + next(_PORTS) % (_EACH - count)
        ports = range(first, first + count)
        if all(map(_is_free, ports)):
            for _ in range(count - 1):
                next(_PORTS)
            return ports
    raise AssertionError("no free ports")


def free_port() -> int:
    """A port at which nobody listens."""
    return free_ports(1)[0]


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        # As servers do it: a connection that has ended is in nobody's way.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

"""systemd's protocols: notifications of readiness and stopping, the watchdog, and sockets passed by a socket unit."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

import anyio

#: The first descriptor that systemd passes on.
_FIRST = 3


def inherited(environ: Mapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening sockets that a socket unit passed to this process, if any.

    With them, a restart refuses no connection: systemd keeps the sockets, and clients wait in their backlog.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    sockets = [socket.socket(fileno=_FIRST + number) for number in range(_number("LISTEN_FDS", environ))]
    for each in sockets:
        each.setblocking(False)
        each.set_inheritable(False)
    return sockets


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send a notification to systemd, e.g. `READY=1`. Returns false without systemd."""
    path = environ.get("NOTIFY_SOCKET")
    if not path:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), address)
    except OSError:
        return False
    return True


async def keep_watchdog(environ: Mapping[str, str] = os.environ) -> None:
    """Notify systemd's watchdog, twice as often as required. Returns at once without a watchdog."""
    interval_s = _number("WATCHDOG_USEC", environ) / 1e6 / 2
    if interval_s <= 0 or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while notify("WATCHDOG=1", environ):  # noqa: ASYNC110 - this is a clock, not a wait
        await anyio.sleep(interval_s)


def _number(name: str, environ: Mapping[str, str]) -> int:
    """The variable's value; 0 if it is not set, or no number."""
    value = environ.get(name, "")
    return int(value) if value.isdecimal() else 0

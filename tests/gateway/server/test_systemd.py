"""What systemd is told, and the sockets it hands over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from hostler.gateway.server.systemd import inherited, keep_watchdog, notify

_LISTENER = """
import os, socket, sys
from hostler.gateway.server.systemd import inherited
sock = socket.socket(); sock.bind(("127.0.0.1", 0)); sock.listen()
os.dup2(sock.fileno(), 3)
found = inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
print(found[0].getsockname() == sock.getsockname(), len(found))
"""


def test_tells_the_socket_that_is_named(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        assert notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert systemd.recv(100) == b"READY=1"


def test_tells_nobody_where_nobody_listens(tmp_path: Path) -> None:
    assert not notify("READY=1", {})
    assert not notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")})


@pytest.mark.anyio
async def test_the_watchdog_is_fed_until_systemd_is_gone(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(5)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000"}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep_watchdog, environ)
            for _ in range(3):
                assert await anyio.to_thread.run_sync(systemd.recv, 100) == b"WATCHDOG=1"
            (tmp_path / "notify").unlink()
    await keep_watchdog({})


def test_takes_only_sockets_that_were_meant_for_this_process() -> None:
    assert inherited({}) == []
    assert inherited({"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1"}) == []
    told = subprocess.run([sys.executable, "-c", _LISTENER], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True", "1"]


@pytest.mark.anyio
async def test_numbers_that_are_none_are_ignored() -> None:
    assert inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "two"}) == []
    for text in ("soon", "-1", "1.5", ""):
        await keep_watchdog({"NOTIFY_SOCKET": "/no/such", "WATCHDOG_USEC": text})

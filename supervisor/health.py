"""Is somebody serving there, and is it really our engine? The smallest HTTP client that can tell."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import secrets
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import psutil

#: How /proc/net/tcp says that a socket listens.
_LISTEN: Final = "0A"

# <linux/netlink.h>, <linux/sock_diag.h>, <net/tcp_states.h>
_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20
_DUMP: Final = 0x301
_TCP_LISTEN: Final = 10
_ERROR: Final = 2
_DONE: Final = 3


async def get_status(host: str, port: int, path: str, *, timeout_s: float, key: str | None = None) -> int | None:
    """The status of one GET on a fresh connection, or `None` if there was no HTTP answer in time."""
    writer: asyncio.StreamWriter | None = None
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    question = f"GET {path} HTTP/1.1\r\nHost: {_host_header(host, port)}\r\n{authorization}Connection: close\r\n\r\n"
    if _nobody_listens(reachable(host), port):
        return None
    try:
        with anyio.move_on_after(timeout_s):
            reader, writer = await asyncio.open_connection(reachable(host), port, limit=8192)
            writer.write(question.encode())
            words = (await reader.readline()).split(None, 2)
            if len(words) >= 2 and words[0].startswith(b"HTTP/"):
                return int(words[1])
    except (OSError, ValueError):
        pass
    finally:
        if writer is not None:
            # Closing politely would wait for the other side, which may be the one that hangs.
            writer.transport.abort()
    return None


async def belongs_to(pids: Iterable[int], host: str, port: int, key: str, *, timeout_s: float = 1.0) -> bool:
    """Whether the server at `port` is one of the processes `pids`, or at least somebody who knows `key`.

    The operating system is asked first; where it does not say (no /proc, not allowed), a server that takes our key
    and refuses another one is ours, since nobody else was told it.
    """
    pids = tuple(pids)
    if any(_proc_says_so(pid, port) for pid in pids):
        return True
    owner = await anyio.to_thread.run_sync(_listens, pids, port)
    if owner is not None:
        return owner
    mine = await get_status(host, port, "/v1/models", timeout_s=timeout_s, key=key)
    other = await get_status(host, port, "/v1/models", timeout_s=timeout_s, key=secrets.token_urlsafe(8))
    return mine == 200 and other in (401, 403)


def reachable(host: str) -> str:
    """An address to connect to for a server that is bound to `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def _nobody_listens(host: str, port: int) -> bool:
    """Whether a connection is refused this very moment, which an address of our own says at once. A no means nothing."""
    try:
        address = ipaddress.ip_address(host)
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            said = probe.connect_ex((host, port))
            if said == errno.EINPROGRESS:
                said = probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            return said == errno.ECONNREFUSED
    except (OSError, ValueError, AttributeError):
        return False


def _proc_says_so(pid: int, port: int) -> bool:
    """The quick way to a yes on Linux, well below a millisecond. A no means nothing."""
    folder = Path("/proc", str(pid))
    try:
        sockets = _sockets_at(port)
        if sockets is None:
            sockets = _sockets_in_tables(folder, port)
        # Paths as strings: an engine may hold hundreds of descriptors.
        with os.scandir(folder / "fd") as entries:
            return bool(sockets) and any(os.readlink(entry) in sockets for entry in entries)  # noqa: PTH115
    except (OSError, ValueError, IndexError):
        return False


def _sockets_at(port: int) -> set[str] | None:
    """What listens at `port`, as /proc names it; `None` if the kernel does not say.

    Asked over netlink, for listening sockets alone: the tables in /proc list every connection of the machine, which
    took 90 ms with some ten thousand of them.
    """
    found = set()
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
            kernel.settimeout(0.2)
            for family in (socket.AF_INET, socket.AF_INET6):
                question = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 0, 1 << _TCP_LISTEN)
                kernel.send(struct.pack("=IHHII", 16 + len(question), _BY_FAMILY, _DUMP, 0, 0) + question)
                for message in _answers(kernel):
                    # struct inet_diag_msg: the source port at 4, big-endian; the inode at its end.
                    if int.from_bytes(message[4:6], "big") == port:
                        found.add(f"socket:[{int.from_bytes(message[68:72], sys.byteorder)}]")
    except (OSError, AttributeError, struct.error):
        return None
    return found


def _answers(kernel: socket.socket) -> Iterator[bytes]:
    """The messages of one netlink dump, without their heads. Raises `OSError` when the kernel refuses."""
    while True:
        data = kernel.recv(1 << 16)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            if kind == _DONE:
                return
            if kind == _ERROR or length < 16:
                raise OSError("the kernel does not say who listens")
            yield data[16:length]
            data = data[(length + 3) & ~3 :]


def _sockets_in_tables(folder: Path, port: int) -> set[str]:
    found = set()
    for table in ("tcp", "tcp6"):
        for line in (folder / "net" / table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTEN and int(words[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{words[9]}]")
    return found


def _listens(pids: tuple[int, ...], port: int) -> bool | None:
    known = False
    for pid in pids:
        try:
            process = psutil.Process(pid)
            # Looking for children reads every process there is: only for an engine that does not listen itself.
            if _has_port(process, port) or any(_has_port(one, port) for one in process.children(recursive=True)):
                return True
            known = True
        except (psutil.Error, OSError, RuntimeError):
            continue
    return False if known else None


def _has_port(process: psutil.Process, port: int) -> bool:
    connections = process.net_connections(kind="tcp")
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections)


def _host_header(host: str, port: int) -> str:
    host = reachable(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

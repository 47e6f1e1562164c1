"""Is somebody serving there, and is it really our engine? The smallest HTTP client that can tell."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import os
import secrets
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
import msgspec
import psutil

from hostler.supervisor.contract import EngineAddress

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


LARGEST_ANSWER = 16 * 1024 * 1024
LARGEST_HEAD = 64 * 1024

_Answer = TypeVar("_Answer")


class EngineError(Exception):
    """The engine did not answer as it should; `status` is what it said, `None` if it said nothing (dead, or deaf).

    `late`: it took the question, and there was no answer in time.
    """

    def __init__(self, message: str, status: int | None = None, *, late: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.late = late


class _Props(msgspec.Struct, frozen=True):
    build_info: str = ""


async def engine_build(address: EngineAddress, *, timeout_s: float = 2.0) -> str:
    """The build that an engine says it is. Raises `EngineError`."""
    return (await request_json(address, "GET", "/props", _Props, timeout_s=timeout_s)).build_info


async def request_json(
    address: EngineAddress,
    method: str,
    path: str,
    kind: type[_Answer],
    *,
    body: msgspec.Struct | None = None,
    timeout_s: float,
) -> _Answer:
    """Send one request and read the whole answer as a `kind`. Raises `EngineError` for everything but a 200 in time."""
    answer = await _exchange(address, method, path, b"" if body is None else msgspec.json.encode(body), timeout_s)
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineError(f"{method} {path}: {error}", 200) from None


async def request_text(address: EngineAddress, path: str, *, timeout_s: float) -> str:
    """As `request_json`, for what is no JSON."""
    return (await _exchange(address, "GET", path, b"", timeout_s)).decode(errors="replace")


async def _exchange(address: EngineAddress, method: str, path: str, content: bytes, timeout_s: float) -> bytes:
    writer: asyncio.StreamWriter | None = None
    try:
        with anyio.fail_after(timeout_s):
            host = reachable(address.host)
            reader, writer = await asyncio.open_connection(host, address.port, limit=LARGEST_HEAD)
            writer.write(_request(address, host, method, path, content))
            status, answer = await _read(reader)
    except TimeoutError:
        raise EngineError(f"{method} {path}: no answer within {timeout_s:g} s", late=True) from None
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
        raise EngineError(f"{method} {path}: {type(error).__name__}") from None
    finally:
        if writer is not None:
            # Closing politely would wait for the other side, which may be the one that hangs.
            writer.transport.abort()
    if status != 200:
        raise EngineError(f"{method} {path}: {status} {answer[:200].decode(errors='replace')}", status)
    return answer


def _request(address: EngineAddress, host: str, method: str, path: str, content: bytes) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: [{host}]:{address.port}" if ":" in host else f"Host: {host}:{address.port}",
        f"Authorization: Bearer {address.key}",
        "Connection: close",
        f"Content-Length: {len(content)}",
        "Content-Type: application/json",
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + content


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split(None, 2)[1])
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    if "chunked" in headers.get("transfer-encoding", "").lower():
        content = b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            _check(len(content) + size)
            content += (await reader.readexactly(size + 2))[:-2]
        return status, content
    if "content-length" in headers:
        size = int(headers["content-length"])
        _check(size)
        return status, await reader.readexactly(size)
    content = b""
    while piece := await reader.read(LARGEST_HEAD):
        content += piece
        _check(len(content))
    return status, content


def _check(size: int) -> None:
    if not 0 <= size <= LARGEST_ANSWER:
        raise ValueError(f"an answer of {size} bytes")


_PREFIX: Final = "llamacpp:"
_ASKED: Final = frozenset({"requests_processing", "requests_deferred"})
_DONE_COUNTERS: Final = frozenset({"prompt_tokens_total", "tokens_predicted_total", "n_decode_total"})


class EngineActivity(msgspec.Struct, frozen=True, kw_only=True):
    """`asked`: questions that it answers now or has in line. `done` grows whenever it works."""

    asked: int = 0
    done: int = 0


async def engine_activity(address: EngineAddress, *, timeout_s: float = 1.0) -> EngineActivity | None:
    """Ask the engine; `None` for one that does not say. One that says nothing in time counts as having one question.

    Not to be asked more often than every one and a half seconds: a busy engine notices only in between that somebody
    left who waits for a whole answer.
    """
    try:
        counters = dict(_counters(await request_text(address, "/metrics", timeout_s=timeout_s)))
    except EngineError as error:
        return EngineActivity(asked=1) if error.late else None
    if not counters.keys() & _ASKED:
        return None
    return EngineActivity(
        asked=int(sum(counters.get(name, 0.0) for name in _ASKED)),
        done=int(sum(counters.get(name, 0.0) for name in _DONE_COUNTERS)),
    )


def _counters(text: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name.startswith(_PREFIX):
            try:
                yield name.removeprefix(_PREFIX), float(value)
            except ValueError:
                continue


#: A question to a port where nobody listens yet costs some 50 microseconds, one to a loading engine ten times that.
FIRST_POLL_S: Final = 0.002
LONGEST_POLL_S: Final = 0.25

#: Between two questions a start may wait this part of the time that it has taken: 25 ms after 2.5 seconds.
POLL_SHARE: Final = 1 / 100

_STATE_LINE: Final = "cmd_child_to_router:state:"

#: On standard input it ends an engine that speaks this protocol.
EXIT_LINE: Final = b"cmd_router_to_child:exit"


class Readiness:
    """One start of one engine. `progress` is how much is loaded, 0 to 1, and `context` what a request gets, if it says so."""

    def __init__(self) -> None:
        self.says_ready = False
        self.progress: float | None = None
        self.context = 0
        self._news = anyio.Event()

    def hear(self, line: str) -> bool:
        """A line of standard output. Whether it was about the engine's state, and no output for people."""
        if not line.startswith(_STATE_LINE):
            return False
        news = _decoded(line)
        if news.get("state") == "ready":
            self.says_ready = True
            self.progress = 1.0
            self.context = _context_of(news)
        elif news.get("state") == "loading":
            value = news.get("payload", {}).get("value")
            if isinstance(value, int | float):
                self.progress = min(1.0, max(0.0, float(value)))
        self._news.set()
        return True

    async def until_answers(self, pid: int, host: str, port: int, key: str, *, answering: Callable[[], None]) -> None:
        """Return when the process `pid` serves at `port`. Somebody else's answer there does not count.

        `answering` is called at the first answer, which may be that it still loads.
        """
        began = time.monotonic()
        answers = ours = False
        while True:
            self._news = anyio.Event()
            status = await get_status(host, port, "/health", timeout_s=0.5)
            if status is not None and not answers:
                answers = True
                answering()
            if status is not None and not ours:
                # Usually found out while it loads, so that it costs nothing when it is ready.
                ours = self.says_ready or await belongs_to((pid,), host, port, key)
            if status == 200 and ours:
                return
            pause = min(LONGEST_POLL_S, max(FIRST_POLL_S, (time.monotonic() - began) * POLL_SHARE))
            with anyio.move_on_after(FIRST_POLL_S if self.says_ready else pause):
                await self._news.wait()


async def until_silent(address: EngineAddress, limit_s: float) -> None:
    """Return when the engine has answered no question for `limit_s`; a busy one answers `/health` all the same.

    One question in vain is not enough: it may have been us who were held up. With a limit of 0 nothing is asked and
    this never returns.
    """
    if limit_s <= 0:
        await anyio.sleep_forever()
    pause = limit_s / 4
    last_answer = time.monotonic()
    in_vain = 0
    while in_vain < 2 or time.monotonic() - last_answer < limit_s:
        await anyio.sleep(pause)
        asked = time.monotonic()
        if await get_status(reachable(address.host), address.port, "/health", timeout_s=pause) is not None:
            last_answer, in_vain = asked, 0
            continue
        in_vain += 1
        if time.monotonic() - asked < pause / 2:
            # Refused at once: it is still there, so give it the rest of the time, without a hurry.
            await anyio.sleep(pause / 2)


def _decoded(line: str) -> dict[str, Any]:
    try:
        news = json.loads(line[len(_STATE_LINE) :])
    except ValueError:
        return {}
    if not isinstance(news, dict) or not isinstance(news.get("payload", {}), dict):
        return {}
    return news


def _context_of(news: dict[str, Any]) -> int:
    """The context that one request really gets, as the engine says it."""
    meta = news.get("payload", {}).get("meta")
    value = meta.get("n_ctx") if isinstance(meta, dict) else None
    return value if isinstance(value, int) else 0

"""The supervisor's HTTP client for its own engines.

Not httpx: a poll of a loading engine costs about 900 us of CPU there on a kept connection (here 400 us on a fresh one), a
poll of a port that still refuses 500 us (here 15 us), and importing it adds 250 ms of CPU and 8 MB to every start.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import anyio
import msgspec

from hostler.supervisor.contract import EngineAddress

MAX_BODY: Final = 16 * 1024 * 1024
MAX_HEAD: Final = 64 * 1024

#: The time in which an engine reports its build, in seconds.
_BUILD_S: Final = 2.0

_METRIC_PREFIX: Final = "llamacpp:"
_REQUEST_GAUGES: Final = frozenset({"requests_processing", "requests_deferred"})
_WORK_COUNTERS: Final = frozenset({"prompt_tokens_total", "tokens_predicted_total", "n_decode_total"})

_Body = TypeVar("_Body")


class EngineError(Exception):
    """The engine did not answer as expected.

    `status` is its HTTP status, `None` without one. `timed_out`: it accepted the request and did not answer in time.
    """

    def __init__(self, message: str, status: int | None = None, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.timed_out = timed_out


class EngineActivity(msgspec.Struct, frozen=True, kw_only=True):
    """`requests` are running or queued in the engine. `work_done` grows whenever the engine works."""

    requests: int = 0
    work_done: int = 0


class _Props(msgspec.Struct, frozen=True):
    build_info: str = ""


async def get_status(host: str, port: int, path: str, *, timeout_s: float, key: str | None = None) -> int | None:
    """The status of one GET, or `None` if there was no HTTP response in time. Never raises for a network error."""
    if refuses_connections(host, port):
        return None
    try:
        with anyio.move_on_after(timeout_s):
            async with _send(host, port, "GET", path, key=key) as reader:
                words = (await reader.readline()).split(None, 2)
                if len(words) >= 2 and words[0].startswith(b"HTTP/"):
                    return int(words[1])
    except (OSError, ValueError):
        pass
    return None


async def accepts_connections(host: str, port: int, *, timeout_s: float) -> bool:
    """Whether a connection is accepted in time. Never raises for a network error."""
    if refuses_connections(host, port):
        return False
    try:
        with anyio.move_on_after(timeout_s):
            _, writer = await asyncio.open_connection(_connect_host(host), port)
            writer.transport.abort()
            return True
    except OSError:
        pass
    return False


async def request_json(
    address: EngineAddress,
    method: str,
    path: str,
    kind: type[_Body],
    *,
    body: msgspec.Struct | None = None,
    timeout_s: float,
) -> _Body:
    """Send one request and decode the response as a `kind`. Raises `EngineError` for everything but a 200 in time."""
    content = b"" if body is None else msgspec.json.encode(body)
    response = await _request(address, method, path, content, timeout_s)
    try:
        return msgspec.json.decode(response, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineError(f"{method} {path}: {error}", 200) from None


async def request_event(
    address: EngineAddress, method: str, path: str, *, body: msgspec.Struct, timeout_s: float
) -> bytes:
    """The data of the first event of a streamed response, whose rest the engine then need not send. Raises `EngineError`."""
    content = msgspec.json.encode(body)
    try:
        with anyio.fail_after(timeout_s):
            async with _send(address.host, address.port, method, path, key=address.key, content=content) as reader:
                status = int((await reader.readuntil(b"\r\n")).split(None, 2)[1])
                if status != 200:
                    raise EngineError(f"{method} {path}: {status}", status)
                await reader.readuntil(b"\r\n\r\n")
                while line := await reader.readline():
                    if line.startswith(b"data:"):
                        return line.removeprefix(b"data:").strip()
                raise EngineError(f"{method} {path}: no event", status)
    except TimeoutError:
        raise EngineError(f"{method} {path}: no response within {timeout_s:g} s", timed_out=True) from None
    except (OSError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError) as error:
        raise EngineError(f"{method} {path}: {type(error).__name__}") from None


async def request(address: EngineAddress, method: str, path: str, *, timeout_s: float) -> None:
    """Send one request without a body. Raises `EngineError` for everything but a 200 in time."""
    await _request(address, method, path, b"", timeout_s)


async def engine_build(address: EngineAddress) -> str:
    """The build that the engine reports. Raises `EngineError`."""
    return (await request_json(address, "GET", "/props", _Props, timeout_s=_BUILD_S)).build_info


async def engine_activity(address: EngineAddress, *, timeout_s: float = 1.0) -> EngineActivity | None:
    """Whether the engine is at work; `None` if it has no such metrics. One that does not answer in time counts as busy.

    Not to be polled more often than every 1.5 seconds: a busy engine notices only between two polls that a client
    which waits for a whole response has disconnected.
    """
    if address.protocol != "llamacpp":
        return None
    try:
        text = (await _request(address, "GET", "/metrics", b"", timeout_s)).decode(errors="replace")
    except EngineError as error:
        return EngineActivity(requests=1) if error.timed_out else None
    metrics = dict(_metrics(text))
    if not metrics.keys() & _REQUEST_GAUGES:
        return None
    return EngineActivity(
        requests=int(sum(metrics.get(name, 0.0) for name in _REQUEST_GAUGES)),
        work_done=int(sum(metrics.get(name, 0.0) for name in _WORK_COUNTERS)),
    )


def refuses_connections(host: str, port: int) -> bool:
    """Whether a connection is refused at once, as local addresses do. `False` proves nothing."""
    try:
        address = ipaddress.ip_address(_connect_host(host))
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            code = probe.connect_ex((str(address), port))
            if code == errno.EINPROGRESS:
                code = probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            return code == errno.ECONNREFUSED
    except (OSError, ValueError, AttributeError):
        return False


def _connect_host(host: str) -> str:
    """An address to connect to for a server that is bound to `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


async def _request(address: EngineAddress, method: str, path: str, content: bytes, timeout_s: float) -> bytes:
    """The body of a 200. Raises `EngineError` for everything else."""
    try:
        with anyio.fail_after(timeout_s):
            async with _send(address.host, address.port, method, path, key=address.key, content=content) as reader:
                status, body = await _read_response(reader)
    except TimeoutError:
        raise EngineError(f"{method} {path}: no response within {timeout_s:g} s", timed_out=True) from None
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
        raise EngineError(f"{method} {path}: {type(error).__name__}") from None
    if status != 200:
        raise EngineError(f"{method} {path}: {status} {body[:200].decode(errors='replace')}", status)
    return body


@asynccontextmanager
async def _send(
    host: str, port: int, method: str, path: str, *, key: str | None, content: bytes = b""
) -> AsyncIterator[asyncio.StreamReader]:
    """Send one request on a connection of its own."""
    host = _connect_host(host)
    lines = [f"{method} {path} HTTP/1.1", f"Host: [{host}]:{port}" if ":" in host else f"Host: {host}:{port}"]
    if key:
        lines.append(f"Authorization: Bearer {key}")
    lines += ["Connection: close", f"Content-Length: {len(content)}", "Content-Type: application/json", "", ""]
    reader, writer = await asyncio.open_connection(host, port, limit=MAX_HEAD)
    try:
        try:
            writer.write("\r\n".join(lines).encode() + content)
        except RuntimeError as error:  # uvloop's, for a connection that has just been closed
            raise ConnectionResetError(str(error)) from error
        yield reader
    finally:
        # A graceful close would wait for the engine, which may be what hangs.
        writer.transport.abort()


async def _read_response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split(None, 2)[1])
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    if "chunked" in headers.get("transfer-encoding", "").lower():
        content = b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            _check_size(len(content) + size)
            content += (await reader.readexactly(size + 2))[:-2]
        return status, content
    if "content-length" in headers:
        size = int(headers["content-length"])
        _check_size(size)
        return status, await reader.readexactly(size)
    content = b""
    while piece := await reader.read(MAX_HEAD):
        content += piece
        _check_size(len(content))
    return status, content


def _check_size(size: int) -> None:
    if not 0 <= size <= MAX_BODY:
        raise ValueError(f"a body of {size} bytes")


def _metrics(text: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name.startswith(_METRIC_PREFIX):
            try:
                yield name.removeprefix(_METRIC_PREFIX), float(value)
            except ValueError:
                continue

"""One JSON question to an engine on a fresh connection, bounded in time and size. No streams, no reuse, no redirects."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import anyio
import msgspec

from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.health import reachable

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
    return (await ask(address, "GET", "/props", _Props, timeout_s=timeout_s)).build_info


async def ask(
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


async def ask_text(address: EngineAddress, path: str, *, timeout_s: float) -> str:
    """As `ask`, for what is no JSON."""
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

"""Many clients: open streams at the speed of a model, and idle connections. `python -m bench scale`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import uvloop

from bench.backend import LARGE_PIECES
from bench.processes import backend, cpu_s, rss_mib
from bench.proxies import Proxy


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How many clients, and for how long. Streams have `chunks`, 20 a second, and the large answer `pieces` of 64 KiB."""

    streams: tuple[int, ...] = (100, 300, 1000)
    idle: tuple[int, ...] = (1000, 3000, 10_000)
    chunks: int = 120
    pieces: int = LARGE_PIECES
    settle_s: float = 3.0
    watch_s: float = 2.0


class Load(msgspec.Struct, kw_only=True):
    """The cost of a number of clients: the share of one core, memory in MiB, and chunks received per second."""

    kind: str
    clients: int
    core: float
    rss_mib: float
    chunks_per_s: float = 0.0


class Scale:
    """Clients of one proxy. `chunks` counts what all of them have received."""

    def __init__(self, url: str, pid: int, proxy: Proxy, sizes: Sizes) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.pid = parts.hostname or "", parts.port or 80, pid
        self.sizes = sizes
        self.chunks = 0
        self.model = proxy.model
        body = {"model": proxy.model, "stream": True, "user": "slow", "max_tokens": sizes.chunks, "messages": []}
        self.body = json.dumps(body).encode()
        self.headers = "".join(f"{header}\r\n" for header in (f"host: {parts.netloc}", *proxy.headers))

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port)

    async def stream(self) -> None:
        reader, writer = await self.open()
        head = f"POST /v1/chat/completions HTTP/1.1\r\n{self.headers}content-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(self.body)}\r\n\r\n".encode() + self.body)
        while b"[DONE]" not in (data := await reader.read(65536)):
            if not data:
                raise ConnectionError("a stream ended before its end")
            self.chunks += data.count(b"data: ")
        writer.close()

    async def watch(self, kind: str, clients: int) -> Load:
        await asyncio.sleep(self.sizes.settle_s)
        began, used, seen = time.perf_counter(), cpu_s(self.pid), self.chunks
        await asyncio.sleep(self.sizes.watch_s)
        seconds = time.perf_counter() - began
        core, chunks = (cpu_s(self.pid) - used) / seconds, (self.chunks - seen) / seconds
        return Load(kind=kind, clients=clients, core=core, rss_mib=rss_mib(self.pid), chunks_per_s=chunks)

    async def streams(self, clients: int) -> Load:
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self.stream())
                if number % 50 == 49:
                    await asyncio.sleep(0.02)
            return await self.watch("streams", clients)

    async def idle(self, clients: int) -> Load:
        """Connections that have sent one request and stay open."""
        writers = []
        for _ in range(clients):
            reader, writer = await self.open()
            writer.write(f"GET /healthz HTTP/1.1\r\n{self.headers}\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            writers.append(writer)
        load = await self.watch("idle", clients)
        for writer in writers:
            writer.close()
        return load

    async def large(self) -> Load:
        """One large answer, read at full speed; the memory is the peak."""
        request = {
            "model": self.model,
            "stream": True,
            "user": "large",
            "messages": [],
            "max_tokens": self.sizes.pieces,
        }
        body = json.dumps(request).encode()
        reader, writer = await self.open()
        head = f"POST /v1/chat/completions HTTP/1.1\r\n{self.headers}content-type: application/json\r\n"
        began, used, most, size, tail = time.perf_counter(), cpu_s(self.pid), 0.0, 0, b""
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        looked = began
        while b"[DONE]" not in tail and (data := await reader.read(1 << 20)):
            size, tail = size + len(data), (tail + data[-64:])[-128:]
            if time.perf_counter() > looked + 0.05:
                looked, most = time.perf_counter(), max(most, rss_mib(self.pid))
        writer.close()
        core = (cpu_s(self.pid) - used) / (time.perf_counter() - began)
        return Load(kind=f"answer of {size / 2**20:.0f} MiB", clients=1, core=core, rss_mib=most)

    async def all(self) -> list[Load]:
        rows = [await self.watch("no clients", 0), await self.large()]
        rows += [await self.streams(clients) for clients in self.sizes.streams]
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        rows += [await self.idle(clients) for clients in self.sizes.idle if clients + 200 < files]
        return rows


def scale(proxy: Proxy, sizes: Sizes = Sizes()) -> list[Load]:  # noqa: B008 - frozen
    """The rows of one proxy in front of its own backend."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        url, pid = stack.enter_context(proxy.start(stack.enter_context(backend()), Path(directory)))
        return uvloop.run(Scale(url, pid, proxy, sizes).all())


def table(rows: list[Load]) -> str:
    """A Markdown table."""
    lines = ["| clients | of one core | RSS, MiB | chunks/s |", "| --- | --- | --- | --- |"]
    for row in rows:
        lines.append(f"| {row.clients} {row.kind} | {row.core:.2f} | {row.rss_mib:.0f} | {row.chunks_per_s:.0f} |")
    return "\n".join(lines)

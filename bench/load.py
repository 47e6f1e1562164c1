"""The load generator: keep-alive connections with one request at a time each, in a process of its own.

`python -m bench.load --url ...` prints one JSON object. Times are taken when bytes are read from the
socket, so its own delay is included; the row "direct" shows how small that is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from typing import cast
from urllib.parse import urlsplit

import httptools
import uvloop

#: Additional time for answers that are in progress at the end, in seconds.
GRACE_S = 20.0
TIME = re.compile(rb"\d{20}")


class Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.transport: asyncio.Transport | None = None
        self.parser: httptools.HttpResponseParser
        self.started = 0.0
        self.first = 0.0
        self.size = 0
        self.tail = b""
        self.keep = True
        self.refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.load.transports.add(self.transport)
        self.ask()

    def ask(self) -> None:
        assert self.transport is not None
        if not self.load.running():
            self.transport.close()
            return
        self.parser = httptools.HttpResponseParser(self)
        self.first, self.size, self.tail = 0.0, 0, b""
        self.started = time.perf_counter()
        self.transport.write(self.load.next_request())

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_headers_complete(self) -> None:
        self.refused = self.parser.get_status_code() != 200
        self.keep = self.parser.should_keep_alive() and not (self.load.fresh and self.load.stream)

    def on_body(self, data: bytes) -> None:
        if not self.first:
            self.first = time.perf_counter()
        self.size += len(data)
        if self.load.stream:
            now = time.monotonic_ns()
            self.load.delays.extend(now - int(stamp) for stamp in TIME.findall(data))
            self.tail = data[-64:]

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        if self.refused or (self.load.stream and b"[DONE]" not in self.tail):
            self.load.errors += 1
        else:
            self.load.latencies.append(now - self.started)
            self.load.firsts.append(self.first - self.started)
            self.load.bytes += self.size
        self.started = 0.0
        asyncio.get_running_loop().call_soon(self.again)

    def again(self) -> None:
        if self.keep and self.transport is not None and not self.transport.is_closing():
            self.ask()
        elif self.transport is not None:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is not None:
            self.load.transports.discard(self.transport)
        self.transport = None
        if self.started:
            self.load.errors += 1
        self.load.lost()


class Load:
    """A run: its requests, duration, and results."""

    def __init__(
        self, url: str, body: bytes, headers: dict[str, str], connections: int, seconds: float, fresh: bool
    ) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 80
        lines = {"host": parts.netloc, "content-type": "application/json", "content-length": str(len(body)), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.request = f"POST {parts.path} HTTP/1.1\r\n{head}\r\n".encode() + body
        self.stream = b'"stream": true' in body
        self.unlike = b'"user": "unlike"' in body
        self.fresh = fresh
        self.connections = connections
        self.end = time.perf_counter() + seconds
        self.seconds = seconds
        self.open = 0
        self.errors = 0
        self.bytes = 0
        self.latencies: list[float] = []
        self.firsts: list[float] = []
        self.delays: list[int] = []
        self.over = asyncio.Event()
        self.transports: set[asyncio.Transport] = set()

    def next_request(self) -> bytes:
        """The same request again, or one whose head never repeats."""
        if not self.unlike:
            return self.request
        return self.request.replace(b"content-type:", b"x-time: %020d\r\ncontent-type:" % time.monotonic_ns(), 1)

    def running(self) -> bool:
        return time.perf_counter() < self.end and self.errors < 1000

    def lost(self) -> None:
        self.open -= 1
        if self.running():
            asyncio.get_running_loop().call_soon(self.reconnect)
        elif not self.open:
            self.over.set()

    def reconnect(self) -> None:
        self.open += 1
        self.group.create_task(self.connect())

    async def connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: Client(self), self.host, self.port)
        except OSError:
            self.errors += 1
            self.lost()

    async def run(self) -> dict[str, object]:
        async with asyncio.TaskGroup() as self.group:
            self.open = self.connections
            for _ in range(self.connections):
                self.group.create_task(self.connect())
            # Slower answers count as errors.
            try:
                async with asyncio.timeout(self.end - time.perf_counter() + GRACE_S):
                    await self.over.wait()
            except TimeoutError:
                self.errors += self.open
                for transport in list(self.transports):
                    transport.abort()
        return {
            "requests": len(self.latencies),
            "errors": self.errors,
            "per_s": len(self.latencies) / self.seconds,
            "mb_per_s": self.bytes / self.seconds / 1e6,
            "latency_ms": quantiles(self.latencies, 1e3),
            "first_byte_ms": quantiles(self.firsts, 1e3),
            "chunk_delay_ms": quantiles(self.delays, 1e-6),
        }


def quantiles(values: list[float] | list[int], scale: float) -> dict[str, float] | None:
    """The median and the 99th percentile, scaled."""
    if not values:
        return None
    ordered = sorted(values)
    return {"p50": ordered[len(ordered) // 2] * scale, "p99": ordered[len(ordered) * 99 // 100] * scale}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--body", required=True)
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument(
        "--fresh", action="store_true", help="a new connection after each stream, for servers that close silently"
    )
    options = parser.parse_args()
    headers = dict(header.split(": ", 1) for header in options.header)
    load = Load(options.url, options.body.encode(), headers, options.connections, options.seconds, options.fresh)
    print(json.dumps(await load.run()))


if __name__ == "__main__":
    uvloop.run(main())

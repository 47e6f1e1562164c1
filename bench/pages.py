"""The cost of open dashboards while all of them receive 100 requests a second: `python -m bench.pages`.

Each page is a reader of `/events`, like the dashboard in a browser. A stalled one has stopped reading.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import uvloop

from bench.processes import backend, cpu_s, rss_mib
from bench.proxies import PROXIES, Proxy

EVENTS_PER_S = 100


class Row(msgspec.Struct, kw_only=True):
    """The gateway with these pages open: the share of one core, memory in MiB, and what each page received, per second."""

    what: str
    core: float
    rss_mib: float
    requests_per_s: float
    events_per_page_s: float
    kib_per_page_s: float


class Pages:
    """A gateway that gets requests at a steady rate, and the pages that watch it."""

    def __init__(
        self, url: str, pid: int, proxy: Proxy, pages: int = 20, flood: int = 3000, settle_s: float = 2.0
    ) -> None:
        """`flood` requests have events enough to fill all buffers of pages that do not read."""
        self.pages, self.flood_requests, self.settle_s = pages, flood, settle_s
        parts = urlsplit(url)
        self.host, self.port, self.pid = parts.hostname or "", parts.port or 80, pid
        self.headers = "".join(f"{header}\r\n" for header in (f"host: {parts.netloc}", *proxy.headers))
        body = json.dumps({"model": proxy.model, "messages": [{"role": "user", "content": "Hello"}]})
        head = f"POST /v1/chat/completions HTTP/1.1\r\n{self.headers}content-type: application/json\r\n"
        self.question = f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()
        self.free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.answered = self.events = self.bytes = 0

    async def once(self) -> None:
        """A whole answer, over a kept connection if there is one that the gateway has not closed yet."""
        while self.free and self.free[-1][0].at_eof():
            self.free.pop()[1].close()
        reader, writer = self.free.pop() if self.free else await asyncio.open_connection(self.host, self.port)
        kept = False
        try:
            writer.write(self.question)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            self.answered += head.startswith(b"http/1.1 200")
            kept = b"connection: close" not in head
        finally:
            if kept:
                self.free.append((reader, writer))
            else:
                writer.close()

    async def ask(self) -> None:
        """Send 100 requests a second, however long each of them takes."""
        async with asyncio.TaskGroup() as group:
            due = time.monotonic()
            while True:
                group.create_task(self.once())
                due += 1 / EVENTS_PER_S
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def flood(self) -> None:
        """Send the `flood`."""

        async def many() -> None:
            for _ in range(self.flood_requests // 8):
                await self.once()

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(many())

    async def page(self) -> None:
        """A page that reads."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(f"GET /events HTTP/1.1\r\n{self.headers}\r\n".encode())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head:
                raise RuntimeError(f"no event stream: {head!r}")
            while data := await reader.read(65536):
                self.events += data.count(b"event: request")
                self.bytes += len(data)
        finally:
            writer.close()

    @contextlib.asynccontextmanager
    async def open(self, pages: int) -> AsyncIterator[None]:
        """Pages that read, as long as the context lasts."""
        tasks = [asyncio.create_task(self.page()) for _ in range(pages)]
        try:
            yield
        finally:
            ended = [task for task in tasks if task.done()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for task in ended:
                task.result()

    @contextlib.contextmanager
    def stalled(self, pages: int) -> Iterator[None]:
        """Pages that subscribe and then read nothing."""
        with contextlib.ExitStack() as stack:
            for _ in range(pages):
                sock = stack.enter_context(socket.socket())
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.connect((self.host, self.port))
                sock.sendall(f"GET /events HTTP/1.1\r\n{self.headers}\r\n".encode())
            yield

    async def watch(self, what: str, reading: int, seconds: float) -> Row:
        await asyncio.sleep(self.settle_s)
        began, used = time.perf_counter(), cpu_s(self.pid)
        answered, events, size = self.answered, self.events, self.bytes
        await asyncio.sleep(seconds)
        took = time.perf_counter() - began
        each = took * max(1, reading)
        return Row(
            what=what,
            core=(cpu_s(self.pid) - used) / took,
            rss_mib=rss_mib(self.pid),
            requests_per_s=(self.answered - answered) / took,
            events_per_page_s=(self.events - events) / each,
            kib_per_page_s=(self.bytes - size) / each / 1024,
        )

    async def all(self, seconds: float, rounds: int) -> list[Row]:
        asking, pages = asyncio.create_task(self.ask()), self.pages
        rows: dict[str, list[Row]] = {}
        try:
            for _ in range(rounds):
                found = [await self.watch("none", 0, seconds)]
                async with self.open(pages):
                    found.append(await self.watch(f"{pages}", pages, seconds))
                with self.stalled(pages):
                    await self.flood()
                    found.append(await self.watch(f"{pages} that have stalled", 0, seconds))
                    async with self.open(pages):
                        found.append(await self.watch(f"{pages}, and {pages} that have stalled", pages, seconds))
                for row in found:
                    rows.setdefault(row.what, []).append(row)
        finally:
            if asking.done():
                asking.result()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            while self.free:
                self.free.pop()[1].close()
        return [median(each) for each in rows.values()]


def median(rows: list[Row]) -> Row:
    """The row with the middle CPU."""
    return sorted(rows, key=lambda row: row.core)[len(rows) // 2]


def table(rows: list[Row]) -> str:
    """A Markdown table; the cost of pages is the difference to the first row."""
    base = rows[0].core
    lines = ["| pages | of one core | more than without | requests/s | events/s, each | KiB/s, each | RSS, MiB |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        more = "" if row is rows[0] else f"{100 * (row.core - base):+.1f} %"
        told = f"{row.events_per_page_s:.0f} | {row.kib_per_page_s:.0f}" if row.events_per_page_s else "– | –"
        lines.append(
            f"| {row.what} | {100 * row.core:.1f} % | {more} | {row.requests_per_s:.0f} | {told} | {row.rss_mib:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table with the medians of several rounds."""
    parser = argparse.ArgumentParser(prog="python -m bench.pages", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hostler", metavar="PROGRAM", help="hostler program to run")
    options = parser.parse_args()
    proxy = PROXIES["hostler"](options.hostler)
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        url, pid = stack.enter_context(proxy.start(stack.enter_context(backend()), Path(directory)))
        print(table(uvloop.run(Pages(url, pid, proxy).all(options.seconds, options.rounds))))


if __name__ == "__main__":
    main()

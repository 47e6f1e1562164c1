"""HTTP clients for the hot path: CPU of Hostler's own transport, aiohttp and httpx for the same requests, alternating.

`python -m bench clients`. aiohttp is measured only where it is installed; it is no dependency.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import httpx
import uvloop

from bench.processes import backend
from hostler.adapters.base import WireRequest
from hostler.gateway.backends.http_transport import LanTransport
from hostler.gateway.backends.transport import Endpoint, Timeouts

WHOLE = b'{"model": "small", "messages": [{"role": "user", "content": "hello"}], "stream": false}'
STREAM = b'{"model": "small", "messages": [{"role": "user", "content": "hello"}], "stream": true}'
PATH = "/v1/chat/completions"
JSON = {"content-type": "application/json"}

Ask = Callable[[bytes], Awaitable[int]]


async def lan(port: int, stack: AsyncExitStack) -> Ask:
    transport = LanTransport()
    stack.push_async_callback(transport.aclose)
    endpoint, timeouts = Endpoint(host="127.0.0.1", port=port, name="bench"), Timeouts()

    async def ask(body: bytes) -> int:
        size = 0
        async with transport.send(WireRequest(path=PATH, body=body), endpoint, timeouts) as answer:
            async for segment in answer.segments():
                size += len(segment)
        return size

    return ask


async def aiohttp(port: int, stack: AsyncExitStack) -> Ask:
    import aiohttp

    # Separate sessions for whole answers and for streams, whose connection the backend closes without announcing it.
    kept, fresh = [
        await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=close), auto_decompress=False)
        )
        for close in (False, True)
    ]
    url = f"http://127.0.0.1:{port}{PATH}"

    async def ask(body: bytes) -> int:
        size = 0
        async with (fresh if body is STREAM else kept).post(url, data=body, headers=JSON) as answer:
            async for segment in answer.content.iter_any():
                size += len(segment)
        return size

    return ask


async def with_httpx(port: int, stack: AsyncExitStack) -> Ask:
    kept, fresh = [
        await stack.enter_async_context(
            httpx.AsyncClient(
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=most, keepalive_expiry=2),
                trust_env=False,
            )
        )
        for most in (None, 0)
    ]
    url = f"http://127.0.0.1:{port}{PATH}"

    async def ask(body: bytes) -> int:
        size = 0
        client = fresh if body is STREAM else kept
        async with client.stream("POST", url, content=body, headers=JSON) as answer:
            async for segment in answer.aiter_raw():
                size += len(segment)
        return size

    return ask


CLIENTS = {"hostler": lan, "aiohttp": aiohttp, "httpx": with_httpx}


async def run(ask: Ask, body: bytes, connections: int, seconds: float) -> tuple[float, float, float]:
    """CPU µs a request, requests a second, median latency in ms."""
    latencies: list[float] = []
    until = time.perf_counter() + seconds

    async def worker() -> None:
        while (started := time.perf_counter()) < until:
            assert await ask(body) > 100
            latencies.append(time.perf_counter() - started)

    cpu, wall = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(worker())
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return cpu / len(latencies) * 1e6, len(latencies) / wall, statistics.median(latencies) * 1e3


async def compare(
    port: int, seconds: float, rounds: int, connections: Sequence[int]
) -> list[dict[str, str | int | float]]:
    """One row per client, kind and number of connections: medians over the rounds."""
    taken: dict[tuple[str, str, int], list[tuple[float, float, float]]] = {}
    async with AsyncExitStack() as stack:
        asks: dict[str, Ask] = {}
        for name, make in CLIENTS.items():
            try:
                asks[name] = await make(port, stack)
            except ImportError:
                print(f"{name}: skipped, not installed")
        for _ in range(rounds):
            for count in connections:
                for kind, body in (("whole", WHOLE), ("stream", STREAM)):
                    for name, ask in asks.items():
                        await ask(body)
                        taken.setdefault((name, kind, count), []).append(await run(ask, body, count, seconds))
    rows: list[dict[str, str | int | float]] = []
    for (name, kind, count), results in sorted(taken.items(), key=lambda item: (item[0][1:], item[0][0])):
        cpu, rate, p50 = (statistics.median(column) for column in zip(*results, strict=True))
        rows.append({"client": name, "kind": kind, "connections": count, "cpu_us": cpu, "per_s": rate, "p50_ms": p50})
    return rows


def main(seconds: float, rounds: int, connections: Sequence[int] = (1, 32)) -> list[dict[str, str | int | float]]:
    """Run the comparison against its own backend."""
    with backend() as port:
        return uvloop.run(compare(port, seconds, rounds, connections))

"""A slow reader holds the engine's stream, not the gateway's memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import psutil
import pytest
from system.hostler_process import run_hostler

pytestmark = pytest.mark.anyio

PIECE = b'data: {"choices": [{"index": 0, "delta": {"content": "%b"}}]}\n\n' % (b"x" * 65_000)
PIECES = 3200  # 200 MB
LAST = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
MB = 1024 * 1024


class Engine:
    """Answers each request with 200 MB, as fast as they are read."""

    def __init__(self) -> None:
        self.sent = 0
        self.moved = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"POST /v1/chat/completions" not in head:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            with contextlib.suppress(ConnectionError):
                writer.write(HEAD)
                for piece in [*[PIECE] * PIECES, LAST]:
                    writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    await writer.drain()
                    self.sent += len(piece)
                    self.moved.set()
                writer.write(b"0\r\n\r\n")
        writer.close()

    async def stands_still(self, seconds: float) -> None:
        """Until nothing has been taken for so long."""
        with contextlib.suppress(TimeoutError):
            while True:
                self.moved.clear()
                async with asyncio.timeout(seconds):
                    await self.moved.wait()


async def test_a_slow_reader_of_200_mb_costs_no_memory(tmp_path: Path) -> None:
    engine = Engine()
    server = await asyncio.start_server(engine.answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = {
        "gateway": {"listen": ["127.0.0.1:0"], "chain": ["lan"], "api_keys_file": None},
        "backends": {"lan": {"kind": "llamacpp", "url": f"http://127.0.0.1:{port}", "models": {"m": "m"}}},
    }
    (tmp_path / "hostler.yaml").write_text(json.dumps(config))
    environ = {"HOSTLER_CACHE": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    command = run_hostler(
        "gateway", "--config", str(tmp_path / "hostler.yaml"), errors=tmp_path / "log", environ=environ
    )
    async with server:
        running = await anyio.to_thread.run_sync(command.__enter__)
        try:
            await measure(engine, running.address, psutil.Process(running.process.pid))
        finally:
            await anyio.to_thread.run_sync(command.__exit__, None, None, None)


async def measure(engine: Engine, address: str, gateway: psutil.Process) -> None:
    reader, writer = await asyncio.open_connection(urlsplit(address).hostname, urlsplit(address).port)
    body = b'{"model": "m", "stream": true, "messages": []}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    before = gateway.memory_info().rss
    writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    received = len(await reader.read(MB))
    await engine.stands_still(0.5)
    assert engine.sent < 40 * MB  # what the kernel's buffers of two connections hold, and a little
    most = gateway.memory_info().rss
    while data := await reader.read(MB):
        received += len(data)
        if received // (10 * MB) != (received - len(data)) // (10 * MB):
            most = max(most, gateway.memory_info().rss)
        if data.endswith(b"0\r\n\r\n"):
            break
    writer.close()
    assert received > PIECES * len(PIECE)
    assert most - before < 30 * MB

"""The embedded engine with a real model, without a supervisor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx

from hostler.supervisor.contract import EngineAddress

KEY = "k"


@asynccontextmanager
async def running_engine(
    model: Path, port: int, slots: Path, arguments: Sequence[str] = ()
) -> AsyncIterator[EngineAddress]:
    """The engine, ready, with one slot that it saves in the folder `slots`."""
    command = ["-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-c", "4096", "-np", "1", "-b", "512"]
    command += ["-t", "1", "--cache-ram", "0", "--slot-save-path", str(slots), *arguments]
    process = await anyio.open_process(
        [sys.executable, "-m", "hostler.supervisor.embedded.server", *command],
        env={**os.environ, "LLAMA_API_KEY": KEY},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(timeout=20, trust_env=False) as http:
            while True:
                assert process.returncode is None
                try:
                    if (await http.get(f"http://127.0.0.1:{port}/health")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                await anyio.sleep(0.02)  # until it is ready, which it does not announce
        yield EngineAddress(model="alpha", host="127.0.0.1", port=port, key=KEY, generation=1, context=4096, parallel=1)
    finally:
        with suppress(ProcessLookupError):  # a test has killed it
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.wait()


async def post(address: EngineAddress, path: str, body: dict[str, Any]) -> Any:
    """The engine's JSON answer. Raises `httpx.HTTPStatusError`."""
    async with httpx.AsyncClient(timeout=120, trust_env=False) as http:
        answer = await http.post(
            f"http://{address.host}:{address.port}{path}", json=body, headers={"Authorization": f"Bearer {address.key}"}
        )
    return answer.raise_for_status().json()


async def chat(address: EngineAddress, messages: list[dict[str, Any]]) -> Any:
    """A short answer."""
    return await post(address, "/v1/chat/completions", {"messages": messages, "max_tokens": 8, "temperature": 0})

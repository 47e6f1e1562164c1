"""A file of requests for three models on a host of one model at a time, `python -m bench.batches`: as a batch, and without.

Sent one after the other, as scripts do with servers that have no batches, each request for another model is a switch. A
chat arrives every ten seconds meanwhile: it interrupts a batch, which goes on in the idle time after it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec

from bench.switching import Engine, connected, hostler, starts

#: How many requests a script sends at a time where it sends several.
AT_ONCE: Final = 8
#: How long a host must have been idle before a model is loaded for a batch, in seconds.
IDLE_S: Final = 0.5
#: The time between two chats, and between two looks at a batch, in seconds.
CHAT_EVERY_S: Final = 10.0
POLL_S: Final = 0.05

Work = Callable[[httpx.AsyncClient, Sequence[str]], Coroutine[Any, Any, None]]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One way to get the answers. `chats` are the waiting times of the others, in seconds, the shortest first."""

    way: str
    requests: int
    seconds: float
    loads: int
    chats: list[float]


def body(model: str) -> dict[str, Any]:
    """A request of the file."""
    return {"model": model, "messages": [{"role": "user", "content": "?"}]}


async def ask(http: httpx.AsyncClient, model: str) -> None:
    (await http.post("/v1/chat/completions", json=body(model))).raise_for_status()


async def in_order(http: httpx.AsyncClient, models: Sequence[str]) -> None:
    """One request after the other."""
    for model in models:
        await ask(http, model)


async def several_at_once(http: httpx.AsyncClient, models: Sequence[str]) -> None:
    """A few requests at a time, in the order of the file."""
    remaining = iter(models)

    async def client() -> None:
        for model in remaining:
            await ask(http, model)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(client())


async def as_batch(http: httpx.AsyncClient, models: Sequence[str]) -> None:
    """The file as a batch in OpenAI's protocol, until all of its requests are answered."""
    url = "/v1/chat/completions"
    lines = "".join(
        json.dumps({"custom_id": str(number), "method": "POST", "url": url, "body": body(model)}) + "\n"
        for number, model in enumerate(models)
    )
    files = {"file": ("input.jsonl", lines.encode())}
    file = (await http.post("/v1/files", data={"purpose": "batch"}, files=files)).raise_for_status().json()
    order = {"input_file_id": file["id"], "endpoint": url, "completion_window": "24h"}
    batch = (await http.post("/v1/batches", json=order)).raise_for_status().json()
    while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
        await asyncio.sleep(POLL_S)
        batch = (await http.get(f"/v1/batches/{batch['id']}")).raise_for_status().json()
    if batch["request_counts"]["completed"] != len(models):
        raise RuntimeError(f"the batch ended as {batch}")


WAYS: Final[dict[str, Work]] = {
    "one after the other": in_order,
    f"{AT_ONCE} at a time": several_at_once,
    "a batch": as_batch,
}


async def measure(address: str, work: Work, models: Sequence[str]) -> tuple[float, list[float]]:
    """The time that the work takes, and the waiting times of chats that arrive meanwhile."""
    chats = []

    async def chat(http: httpx.AsyncClient) -> None:
        while True:
            began = time.monotonic()
            await ask(http, "a")
            chats.append(time.monotonic() - began)
            await asyncio.sleep(max(0.0, CHAT_EVERY_S - chats[-1]))

    async with connected(address) as http:
        began = time.monotonic()
        chatting = asyncio.create_task(chat(http))
        try:
            await work(http, models)
            return time.monotonic() - began, chats
        finally:
            chatting.cancel()
            await asyncio.gather(chatting, return_exceptions=True)


def run(requests: int, engine: Engine) -> list[Row]:
    """All ways with the same file, one after the other, on the same gateway."""
    models = random.Random(7).choices("abc", k=requests)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        batches = {"idle_s": IDLE_S, "file": str(folder / "batches.sqlite3")}
        with hostler(folder, patience_s=0.5, engine=engine, batches=batches) as address:
            asyncio.run(measure(address, in_order, "abc"))  # the first loads are slower
            for way, work in WAYS.items():
                before = starts(folder)
                seconds, chats = asyncio.run(measure(address, work, models))
                rows.append(
                    Row(way=way, requests=requests, seconds=seconds, loads=starts(folder) - before, chats=sorted(chats))
                )
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| requests | sent as | all answered after, s | loads | a chat, median | longest |",
        "| --- |" + " --- |" * 5,
    ]
    for row in rows:
        chats = row.chats or [0.0]
        lines.append(
            f"| {row.requests} | {row.way} | {row.seconds:.1f} | {row.loads} | {statistics.median(chats):.1f} s "
            f"| {chats[-1]:.1f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.batches", description=__doc__)
    parser.add_argument("--requests", type=int, default=60, help="requests of the file")
    print(table(run(parser.parse_args().requests, Engine())))


if __name__ == "__main__":
    main()

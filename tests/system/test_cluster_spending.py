"""A daily spending limit of gateways with several workers each, as processes, with their common store and without it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fakes.fake_openrouter import COST, FakeOpenRouter
from fakes.redis_server import RedisServer, needs_redis
from system.cluster_programs import PATIENCE_S, running_cluster, status
from system.several_gateways import GatewayProgram

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180), needs_redis]

#: So many answers the limit is worth.
ANSWERS = 12
CHAT = {"model": "a", "messages": [{"role": "user", "content": "Hello"}]}


@asynccontextmanager
async def two_gateways(folder: Path, store: str, cloud: FakeOpenRouter) -> AsyncIterator[list[GatewayProgram]]:
    """Gateways that know each other, and what an answer costs."""
    backends: dict[str, Any] = {
        "cloud": {"kind": "openai", "url": f"{cloud.url}/v1", "models": {"a": "m"}, "local": False}
    }
    async with running_cluster(folder, store) as cluster:
        gateways = [
            await cluster.gateway(
                name,
                backends=backends,
                workers=2,
                spending={"daily_limit": ANSWERS * COST, "file": str(folder / f"{name}-spending.json")},
            )
            for name in ("one", "two")
        ]
        await until_connected(gateways)
        for gateway in gateways:
            await until_answered(gateway)
        yield gateways


async def until_connected(gateways: list[GatewayProgram]) -> None:
    with anyio.fail_after(PATIENCE_S):
        for gateway in gateways:
            while not is_connected((await status(gateway))["cluster"]):  # noqa: ASYNC110 - other processes
                await anyio.sleep(0.05)


def is_connected(cluster: dict[str, Any]) -> bool:
    return bool(cluster["connected"]) and len(cluster["gateways"]) == 2


async def ask(gateway: GatewayProgram, http: httpx.AsyncClient | None = None) -> bool:
    """Whether a request is answered; else the limit has refused it."""
    http = gateway.http if http is None else http
    url = f"{gateway.running.address}/v1/chat/completions"
    answer = await http.post(url, json=CHAT, headers=gateway.auth(), timeout=60)
    assert answer.status_code == 200 or "spending limit" in answer.text, answer.text
    return answer.status_code == 200


async def until_answered(gateway: GatewayProgram) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not await ask(gateway):  # noqa: ASYNC110 - a request of unknown cost waits for the others
            await anyio.sleep(0.05)


async def answered(gateways: list[GatewayProgram], requests: int) -> list[int]:
    """How many of so many requests, all at once, with a connection each, which the system spreads over the workers, each
    gateway has answered."""
    counts = [0] * len(gateways)

    async def client(number: int) -> None:
        async with httpx.AsyncClient(trust_env=False) as http:
            is_answered = await ask(gateways[number], http)
            counts[number] += is_answered

    async with anyio.create_task_group() as tasks:
        for number in range(requests):
            tasks.start_soon(client, number % len(gateways))
    return counts


async def test_the_limit_holds_over_all_workers_of_all_gateways(
    tmp_path: Path, server: RedisServer, cloud: FakeOpenRouter
) -> None:
    async with two_gateways(tmp_path, server.url, cloud) as gateways:
        total = 2 + sum(await answered(gateways, 40))
        assert 2 < total <= ANSWERS
        # On a busy machine another gateway may be late to give up what it could use without the store.
        for _ in range(ANSWERS - total):
            await until_answered(gateways[0])
        assert await answered(gateways, 10) == [0, 0]
        assert len(cloud.requests) == ANSWERS


async def test_without_the_store_workers_share_what_their_gateway_may_spend(
    tmp_path: Path, server: RedisServer, cloud: FakeOpenRouter
) -> None:
    async with two_gateways(tmp_path, server.url, cloud) as gateways:
        server.kill()
        counts = await answered(gateways, 60)
        assert min(counts) >= 1
        total = 2 + sum(counts)
        assert total <= ANSWERS + len(gateways)
        assert await answered(gateways, 10) == [0, 0]
        server.start()
        await until_connected(gateways)
        # The empty store gives no new budget.
        assert total + sum(await answered(gateways, 10)) <= ANSWERS + len(gateways)

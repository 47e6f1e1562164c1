"""Past requests of all gateways of a cluster, at each of them: routes, events and commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.redis_server import RedisServer, needs_redis
from system.several_gateways import GatewayProgram, installation
from system.test_cluster import PROFILES, command, get, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120), needs_redis]


async def history(gateway: GatewayProgram, count: int) -> list[dict[str, Any]]:
    """The past requests that a gateway knows, once there are so many."""
    with anyio.fail_after(30):
        while len(found := await get(gateway, "/admin/history?kind=requests")) < count:  # noqa: ASYNC110
            await anyio.sleep(0.05)
    return [each["event"] for each in found]


async def test_every_gateway_shows_the_past_requests_of_all(tmp_path: Path, server: RedisServer) -> None:
    shared = {"store": server.url, "token": "secret"}
    async with installation(tmp_path / "host", PROFILES, gateways=3, cluster=shared) as all_of_it:
        gateways = all_of_it.gateways
        for gateway in gateways:
            await until(gateway, lambda found: len(found["gateways"]) == 3)
        three = gateways[2]
        with anyio.fail_after(60):
            async with three.http.stream("GET", "/events", headers=three.auth()) as events:
                for client, gateway in zip(("anna", "bob", "carol"), gateways, strict=True):
                    assert (await gateway.chat("a", client, user="a secret <b>word</b>")).status_code == 200
                live: set[str] = set()
                kind = ""
                async for line in events.aiter_lines():
                    name, _, value = line.partition(": ")
                    kind = value if name == "event" else kind
                    if name == "data" and kind == "request":
                        live.add(json.loads(value)["gateway"])
                    if len(live) == 3:
                        break
        expected = {("anna", "gateway0"), ("bob", "gateway1"), ("carol", "gateway2")}
        for gateway in gateways:
            found = await history(gateway, 3)
            assert {(each["client"], each["gateway"]) for each in found} == expected
            [bucket] = await get(gateway, "/admin/figures?minutes=10&buckets=1")
            assert bucket["requests"] == 3
        shown = await command(three, "events")
        for client, name in expected:
            assert f"{client} at {name}" in shown
        # Times, names and figures are all that the store gets.
        kept = server("XRANGE", "hostler:hostler:history", "-", "+")
        assert "anna" in kept
        assert "secret" not in kept
        assert "Hello" not in kept
        assert gateways[0].auth()["Authorization"].removeprefix("Bearer ") not in kept


async def test_without_the_store_each_gateway_shows_its_own_until_it_is_back(
    tmp_path: Path, server: RedisServer
) -> None:
    async with installation(tmp_path / "host", PROFILES, cluster={"store": server.url}) as all_of_it:
        one, two = all_of_it.gateways
        for gateway in (one, two):
            await until(gateway, lambda found: found["connected"] and len(found["gateways"]) == 2)
        server.kill()
        for gateway in (one, two):
            await until(gateway, lambda found: not found["connected"])
            assert (await gateway.chat("a")).status_code == 200
        assert [each["gateway"] for each in await history(one, 1)] == ["gateway0"]
        assert [each["gateway"] for each in await history(two, 1)] == ["gateway1"]
        server.start()
        for gateway in (one, two):
            assert sorted(each["gateway"] for each in await history(gateway, 2)) == ["gateway0", "gateway1"]


async def test_the_settings_keep_past_requests_out_of_the_store(tmp_path: Path, server: RedisServer) -> None:
    shared = {"store": server.url, "history": False}
    async with installation(tmp_path / "host", PROFILES, cluster=shared) as all_of_it:
        one, two = all_of_it.gateways
        for gateway in (one, two):
            await until(gateway, lambda found: found["connected"] and len(found["gateways"]) == 2)
        assert (await one.chat("a")).status_code == 200
        await one.stop()
        assert await get(two, "/admin/history?kind=requests") == []
        assert server("EXISTS", "hostler:hostler:history") == ":0"

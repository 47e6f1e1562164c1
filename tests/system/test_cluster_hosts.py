"""Hosts of the whole installation at each gateway of a cluster: routes and commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.redis_server import needs_redis, redis_server
from system.running_gateway import remote_supervisor
from system.several_gateways import GatewayProgram, installation
from system.test_cluster import PROFILES, command, get, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120), needs_redis]


async def elsewhere(gateway: GatewayProgram, count: int) -> list[dict[str, Any]]:
    """The hosts that only others use, once there are so many."""
    with anyio.fail_after(30):
        while len(found := (await get(gateway, "/admin/status"))["cluster"]["elsewhere"]) != count:  # noqa: ASYNC110
            await anyio.sleep(0.05)
    return list(found)


def loaded(hosts: list[dict[str, Any]]) -> list[str]:
    return [each["model"] for each in hosts[0]["models"] if each["phase"] == "ready"]


async def test_a_host_that_only_one_gateway_uses_is_shown_by_all(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as server:
        async with (
            remote_supervisor(tmp_path / "attic", {"rare": {}, "a": {}}) as attic,
            installation(tmp_path / "host", PROFILES, cluster={"store": server.url}) as everything,
        ):
            one, two = everything.gateways
            await one.restart_with(backends={"attic": attic.backend})
            for gateway in (one, two):
                await until(gateway, lambda found: found["connected"] and len(found["gateways"]) == 2)
            assert (await one.chat("rare", "bob")).status_code == 200
            with anyio.fail_after(30):
                while "rare" not in loaded(found := await elsewhere(two, 1)):  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            assert (found[0]["name"], found[0]["gateways"], found[0]["reachable"]) == ("attic", ["gateway0"], True)
            assert await elsewhere(one, 0) == []
            shown = await command(two, "status")
            assert "attic at gateway0" in shown
            assert "reachable: rare" in shown
            assert "attic has it as well (cold), but only gateway0 can send requests there." in (
                await command(two, "route", "a", "--dry-run")
            )
            assert "2 gateways: gateway0, gateway1 (this one)" in await command(two, "doctor", "a")
            metrics = await get(two, "/metrics")
            assert "hostler_cluster_hosts_elsewhere 1.0" in metrics
            assert 'hostler_cluster_requests_in_flight{gateway="gateway0"} 0.0' in metrics
            with anyio.fail_after(30):
                wanted = 'hostler_cluster_requests_finished_total{gateway="gateway0",outcome="ok"} 1.0'
                while wanted not in await get(two, "/metrics"):  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            await one.stop()
            assert await elsewhere(two, 0) == []

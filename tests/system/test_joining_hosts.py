"""Hosts that no gateway's file names: their supervisors join the cluster, and gateways use them while they run."""

from __future__ import annotations

from pathlib import Path

import anyio
import httpx
import pytest
from fakes.certificates import make_pair
from fakes.network_card import network_card, packets, wake_settings
from fakes.redis_server import RedisServer, needs_redis
from fakes.tcp_proxy import proxy_to
from system.cluster_programs import PATIENCE_S, Cluster, status, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240), needs_redis]


@pytest.mark.parametrize("workers", [1, 2])
async def test_hosts_join_by_themselves_and_are_used_by_every_gateway(cluster: Cluster, workers: int) -> None:
    first, second = await cluster.gateway("one", workers=workers), await cluster.gateway("two")
    assert (await first.chat("a")).status_code == 404
    _, attic = await cluster.host("attic", "a")
    for gateway in (first, second):
        await until(gateway, lambda hosts: hosts == {"attic": True})
        await gateway.until_known("a")
        assert (await gateway.chat("a")).status_code == 200
        shown = (await status(gateway))["cluster"]
        assert [each["name"] for each in shown["hosts"]] == ["attic"]
        assert [each["name"] for each in shown["gateways"]] == ["one", "two"]  # workers are no members
    assert attic.starts() == ["a"]
    # One more host: in the order of names, at both gateways.
    await cluster.host("annex", "a", "b")
    for gateway in (first, second):
        await until(gateway, lambda hosts: set(hosts.items()) == {("annex", True), ("attic", True)})
        await gateway.until_known("b")
        assert (await gateway.chat("b")).status_code == 200
        route = await gateway.http.get("/admin/route", params={"model": "a"}, headers=gateway.auth())
        assert {hop["backend"] for hop in route.json()["hops"]} == {"annex", "attic"}
        metrics = (await gateway.http.get("/metrics", headers=gateway.auth())).text
        assert "hostler_cluster_hosts 2.0" in metrics


async def test_a_host_that_is_gone_is_unreachable_and_used_again_when_it_returns(cluster: Cluster) -> None:
    gateway = await cluster.gateway("one")
    program, _ = await cluster.host("attic", "a")
    await until(gateway, lambda hosts: hosts == {"attic": True})
    await program.kill()
    await until(gateway, lambda hosts: hosts == {"attic": False})
    await program.start()
    await until(gateway, lambda hosts: hosts == {"attic": True})
    assert (await gateway.chat("a")).status_code == 200


async def test_known_hosts_are_used_by_a_gateway_that_starts_without_the_store(
    cluster: Cluster, server: RedisServer
) -> None:
    gateway = await cluster.gateway("one")
    await cluster.host("attic", "a")
    await until(gateway, lambda hosts: hosts == {"attic": True})
    server.kill()
    await gateway.stop()
    await gateway.start()
    gateway.http.base_url = gateway.running.address
    await until(gateway, lambda hosts: hosts == {"attic": True})
    assert (await gateway.chat("a")).status_code == 200


async def test_a_hosts_certificate_is_what_it_reports(cluster: Cluster, tmp_path: Path) -> None:
    gateway = await cluster.gateway("one")
    await cluster.host("attic", "a", pair=make_pair(tmp_path, "attic-certificate"))
    await until(gateway, lambda hosts: hosts == {"attic": True})
    assert (await gateway.chat("a")).status_code == 200
    (host,) = (await status(gateway))["cluster"]["hosts"]
    assert host["url"].startswith("https://127.0.0.1:")


async def test_a_supervisor_with_another_token_is_not_used(cluster: Cluster) -> None:
    gateway = await cluster.gateway("one")
    await cluster.host("stranger", "a", token="guessed")
    await cluster.host("attic", "b")
    await until(gateway, lambda hosts: hosts == {"attic": True})
    assert (await gateway.chat("a")).status_code == 404
    assert "a host with another token" in gateway.log


async def test_a_host_that_the_file_names_at_another_address_is_one_host(cluster: Cluster) -> None:
    attic, log = await cluster.host("attic", "a")
    async with proxy_to(attic.running.address) as proxy:
        named = {
            "kind": "supervisor", "url": f"http://127.0.0.1:{proxy.port}",
            "token": "of its own, which gateways do not know",
        }  # fmt: skip
        gateway = await cluster.gateway("one", backends={"pc": named})
        await until(gateway, lambda hosts: hosts == {"pc": True})
        assert (await gateway.chat("a")).headers["x-hostler-backend"] == "pc"
        await attic.kill()
        await until(gateway, lambda hosts: hosts == {"pc": False})
        await attic.start()
        await until(gateway, lambda hosts: hosts == {"pc": True})
        assert (await gateway.chat("a")).headers["x-hostler-backend"] == "pc"
        assert (await status(gateway))["cluster"]["hosts"] == []
    assert log.starts() == ["a", "a"]


async def test_a_host_that_joined_is_woken_by_the_next_request(cluster: Cluster) -> None:
    with network_card() as card:
        gateway = await cluster.gateway("one")
        attic, log = await cluster.host("attic", "a", wake=wake_settings(card))
        await until(gateway, lambda hosts: hosts == {"attic": True})
        await attic.kill()
        await until(gateway, lambda hosts: hosts == {"attic": False})
        async with anyio.create_task_group() as tasks:
            answers: list[httpx.Response] = []

            async def chat() -> None:
                answers.append(await gateway.chat("a"))

            tasks.start_soon(chat)
            with anyio.fail_after(PATIENCE_S):
                while not packets(card):  # noqa: ASYNC110 - a socket of the test
                    await anyio.sleep(0.05)
            await attic.start()
        assert (answers[0].status_code, answers[0].headers["x-hostler-backend"]) == (200, "attic"), answers[0].text
        assert log.starts() == ["a"]

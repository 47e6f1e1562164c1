"""Hosts that no gateway's file names: their supervisors join the cluster, and gateways use them while they run."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.certificates import Pair, make_pair
from fakes.ports import free_port
from fakes.redis_server import RedisServer, needs_redis, redis_server
from system.running_gateway import FAKE_ENGINE, EngineLog, write_keys
from system.several_gateways import GatewayProgram, Program

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240), needs_redis]

#: A busy machine must not look like a host that is gone.
PATIENCE_S = 90


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server


class Cluster:
    """Gateways and supervisors that share nothing but a store and a token."""

    def __init__(self, folder: Path, store: str) -> None:
        self._folder = folder
        self._store = store
        self._file, self._keys = write_keys(folder, anna=0)
        self._stack = AsyncExitStack()

    def _cluster(self, name: str, token: str) -> dict[str, str]:
        return {"store": self._store, "name": "home", "token": token, "member": name}

    def _environ(self, name: str) -> dict[str, str]:
        folder = self._folder / name
        return {"HOSTLER_CACHE": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state")}

    async def gateway(self, name: str, **settings: Any) -> GatewayProgram:
        """Start a gateway without any backend."""
        document = {
            "gateway": {"listen": ["127.0.0.1:0"], "api_keys_file": self._file, **settings},
            "cluster": self._cluster(name, "secret"),
        }
        path = self._folder / f"{name}.yaml"
        path.write_text(json.dumps(document))
        return await self._stack.enter_async_context(GatewayProgram(path, self._environ(name), self._keys).started())

    async def host(
        self, name: str, *models: str, token: str = "secret", pair: Pair | None = None
    ) -> tuple[Program, EngineLog]:
        """Start a supervisor with scripted engines."""
        folder = self._folder / name
        folder.mkdir()
        (folder / "model.gguf").write_bytes(b"not read by the scripted engine")
        script = {"FAKE_ENGINE": json.dumps({"log": str(folder / "engines.log"), "chunks": 3})}
        section: dict[str, Any] = {
            "listen": f"127.0.0.1:{free_port()}", "engine": f"{sys.executable} -I -S {FAKE_ENGINE}", "stop_grace_s": 1.0,
            "token": "of its own, which gateways do not know",
        }  # fmt: skip
        if pair is not None:
            section["tls"] = {"cert": pair.cert, "key": pair.key}
        document = {
            "supervisor": section,
            "cluster": self._cluster(name, token),
            "profiles": {model: {"model": str(folder / "model.gguf"), "env": script} for model in models},
        }
        path = self._folder / f"{name}.yaml"
        path.write_text(json.dumps(document))
        program = Program("supervisor", path, self._environ(name))
        await program.start()
        self._stack.push_async_callback(program.stop)
        return program, EngineLog(folder / "engines.log")

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._stack.aclose()


@pytest.fixture
async def cluster(tmp_path: Path, server: RedisServer) -> AsyncIterator[Cluster]:
    @asynccontextmanager
    async def running() -> AsyncIterator[Cluster]:
        cluster = Cluster(tmp_path, server.url)
        try:
            yield cluster
        finally:
            await cluster.aclose()

    async with running() as cluster:
        yield cluster


async def status(gateway: GatewayProgram) -> dict[str, Any]:
    answer = await gateway.http.get("/admin/status", headers=gateway.auth())
    found: dict[str, Any] = answer.json()
    return found


async def until(gateway: GatewayProgram, condition: Callable[[dict[str, bool]], object]) -> None:
    """Wait until the hosts, with whether each is reachable, fulfil the condition."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            hosts = (await status(gateway))["hosts"]
            if condition({host["backend"]: host["reachable"] for host in hosts}):
                return
            await anyio.sleep(0.05)


@pytest.mark.parametrize("workers", [1, 2])
async def test_hosts_join_by_themselves_and_are_used_by_every_gateway(cluster: Cluster, workers: int) -> None:
    first, second = await cluster.gateway("one", workers=workers), await cluster.gateway("two")
    assert (await first.chat("a")).status_code == 404
    _, attic = await cluster.host("attic", "a")
    for gateway in (first, second):
        await until(gateway, lambda hosts: hosts == {"attic": True})
        with anyio.fail_after(PATIENCE_S):
            while (answer := await gateway.chat("a")).status_code == 404:  # its workers learn of it in a moment
                pass
        assert answer.status_code == 200, answer.text
        shown = (await status(gateway))["cluster"]
        assert [each["name"] for each in shown["hosts"]] == ["attic"]
        assert [each["name"] for each in shown["gateways"]] == ["one", "two"]  # workers are no members
    assert attic.starts() == ["a"]
    # One more host: in the order of names, at both gateways.
    await cluster.host("annex", "a", "b")
    for gateway in (first, second):
        await until(gateway, lambda hosts: set(hosts.items()) == {("annex", True), ("attic", True)})
        with anyio.fail_after(PATIENCE_S):
            while (answer := await gateway.chat("b")).status_code == 404:
                pass
        assert answer.status_code == 200, answer.text
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

"""Profiles and keys that are changed once, for two gateways and a host that share nothing but a store and a token."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.gguf_files import LLAMA, TENSORS, GgufWriter
from fakes.redis_server import RedisServer, needs_redis
from system.cluster_programs import PATIENCE_S, Cluster, status, until
from system.several_gateways import GatewayProgram

from hostler.gateway.auth import keys

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240), needs_redis]


async def hostler(cluster: Cluster, folder: Path, *arguments: str, expected: int = 0) -> str:
    """What a command prints beside the configuration of gateway `one`."""
    command = [sys.executable, "-m", "hostler.gateway", *arguments, "--config", str(folder / "one.yaml")]

    def run() -> subprocess.CompletedProcess[str]:
        environ = {"PATH": "", "COLUMNS": "300", **cluster.environ("one")}
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)

    done = await anyio.to_thread.run_sync(run)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr


async def admits(gateway: GatewayProgram, key: str) -> bool:
    """Whether each worker does."""
    return await gateway.statuses("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"}) == {200}


async def eventually(condition: Callable[[], Any]) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - what is waited for happens in other processes
            await anyio.sleep(0.05)


async def test_keys_are_changed_once_and_a_revoked_one_stops_working_everywhere(
    cluster: Cluster, server: RedisServer, tmp_path: Path
) -> None:
    first, second = await cluster.gateway("one", workers=2), await cluster.gateway("two")
    file = tmp_path / "shared-keys"
    bob, eve = keys.add(file, "bob", ["infer", "read"]), keys.add(file, "eve", ["infer", "read"])
    assert not await admits(first, bob) and not await admits(second, bob)
    shown = await hostler(cluster, tmp_path, "config", "push", "keys", str(file))
    assert "keys: version 1, by " in shown
    for gateway in (first, second):
        await eventually(lambda gateway=gateway: admits(gateway, bob))
        await eventually(lambda gateway=gateway: admits(gateway, eve))
        assert await admits(gateway, gateway.auth()["Authorization"].removeprefix("Bearer "))
    assert bob not in server("GET", "hostler:home:configuration:keys")
    keys.revoke(file, "eve")
    await hostler(cluster, tmp_path, "config", "push", "keys", str(file))

    async def is_refused(gateway: GatewayProgram) -> bool:
        return await gateway.statuses("GET", "/v1/models", headers={"Authorization": f"Bearer {eve}"}) == {401}

    for gateway in (first, second):
        await eventually(lambda gateway=gateway: is_refused(gateway))
        assert await admits(gateway, bob)
    # Without the store, after a restart.
    server.kill()
    await second.stop()
    await second.start()
    second.http.base_url = second.running.address
    assert await admits(second, bob)
    assert not await admits(second, eve)
    server.start()
    members = json.loads(await hostler(cluster, tmp_path, "config", "status", "--json"))["members"]
    assert {each["member"] for each in members} <= {"one", "two"}

    async def all_have_two() -> bool:
        found = json.loads(await hostler(cluster, tmp_path, "config", "status", "--json"))
        versions = {each["member"]: each["configuration"][0]["version"] for each in found["members"]}
        return versions == {"one": 2, "two": 2} and [each["version"] for each in found["shared"]] == [2]

    await eventually(all_have_two)


async def test_profiles_are_changed_once_and_a_host_that_cannot_says_why(cluster: Cluster, tmp_path: Path) -> None:
    gateway = await cluster.gateway("one")
    program, log = await cluster.host("attic", "own")
    await until(gateway, lambda hosts: hosts == {"attic": True})
    model = tmp_path / "shared.bin"
    model.touch()
    file = tmp_path / "shared.yaml"

    def write(profiles: dict[str, Any], **more: Any) -> None:
        file.write_text(json.dumps({"profiles": profiles, **more}))

    base = {"base": "own", "model": str(model)}
    write({"fresh": base, "elsewhere": base, "own": {"model": "/other"}}, hosts={"elsewhere": ["cellar"]})
    shown = await hostler(cluster, tmp_path, "config", "push", "profiles", str(file))
    assert "its own file has own" in shown

    async def answers(model: str, code: int) -> bool:
        return (await gateway.chat(model)).status_code == code

    await eventually(lambda: answers("fresh", 200))
    assert await answers("elsewhere", 404)
    # One that the host cannot run: it keeps what it has, and says why, wherever one looks.
    write({"fresh": base, "missing": {"model": str(tmp_path / "nowhere.gguf")}})
    shown = await hostler(cluster, tmp_path, "config", "push", "profiles", str(file), expected=1)
    assert "refuses 2: profiles.missing.model: " in shown

    async def reported() -> bool:
        found = (await status(gateway))["cluster"]
        return any("host attic cannot use the shared profiles of version 2" in each for each in found["problems"])

    await eventually(reported)
    assert "version 1 stays in use" in (await status(gateway))["cluster"]["problems"][0]
    metrics = (await gateway.http.get("/metrics", headers=gateway.auth())).text
    assert 'hostler_cluster_configuration_refused{kind="profiles"} 1.0' in metrics
    assert await answers("fresh", 200) and await answers("own", 200)
    # The file arrives: no one has to do anything.
    (tmp_path / "nowhere.gguf").write_bytes(GgufWriter().bytes(LLAMA, TENSORS))
    await eventually(lambda: is_mended(gateway))
    # A restart without the section's profiles changes nothing; their removal does.
    await program.stop()
    await program.start()
    await eventually(lambda: answers("fresh", 200))
    await hostler(cluster, tmp_path, "config", "remove", "profiles")
    await eventually(lambda: answers("fresh", 404))
    assert await answers("own", 200)
    assert "fresh" in log.starts()


async def is_mended(gateway: GatewayProgram) -> bool:
    return not (await status(gateway))["cluster"]["problems"]


async def test_mistakes_are_found_before_anything_is_published(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.gateway("one")
    file = tmp_path / "shared.yaml"
    file.write_text("profiles: {a: {model: /m.gguf, engine: /bin/sh}}")
    shown = await hostler(cluster, tmp_path, "config", "push", "profiles", str(file), expected=2)
    assert "shared.yaml:1: profiles.a.engine: is not shared" in shown
    file.write_text("not a key")
    assert "is not a key record" in await hostler(cluster, tmp_path, "config", "push", "keys", str(file), expected=2)
    assert "name the file" in await hostler(cluster, tmp_path, "config", "push", "profiles", expected=2)
    assert "no keys are shared" in await hostler(cluster, tmp_path, "config", "show", "keys", expected=1)
    await hostler(cluster, tmp_path, "config", "push", "keys")  # this gateway's own file
    assert '"name":"anna"' in await hostler(cluster, tmp_path, "config", "show", "keys")
    shown = await hostler(cluster, tmp_path, "config", "push", "keys", "--base", "7", expected=1)
    assert "keys have version 1 by now, not 7" in shown
    file.write_text("profiles: {a: {model: /m.gguf}}")
    shown = await hostler(cluster, tmp_path, "config", "push", "profiles", str(file))
    assert "No member that takes profiles is there now" in shown

"""Gateways with a common store, as processes: what they show of each other, and that no request depends on the store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fakes.redis_server import RedisServer, needs_redis
from system.several_gateways import GatewayProgram, installation

from hostler.gateway.context import KeyRules

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

PROFILES = {"a": {"script": {"chunks": 3}}}


async def get(gateway: GatewayProgram, path: str) -> Any:
    answer = await gateway.http.get(path, headers=gateway.auth())
    assert answer.status_code == 200
    return answer.json() if answer.headers["content-type"].startswith("application/json") else answer.text


async def until(gateway: GatewayProgram, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The state of the cluster once the condition is met."""
    with anyio.fail_after(30):
        while not condition(cluster := (await get(gateway, "/admin/status"))["cluster"]):  # noqa: ASYNC110
            await anyio.sleep(0.02)
    found: dict[str, Any] = cluster
    return found


async def command(gateway: GatewayProgram, *words: str) -> str:
    environ = {
        **os.environ,
        "HOSTLER_API_KEY": gateway.auth()["Authorization"].removeprefix("Bearer "),
        "COLUMNS": "200",
    }
    arguments = [sys.executable, "-m", "hostler.gateway", *words, "--url", gateway.running.address]
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(arguments, env=environ, capture_output=True, text=True, timeout=60)
    )
    return done.stdout + done.stderr


@needs_redis
async def test_every_gateway_shows_all_gateways(tmp_path: Path, server: RedisServer) -> None:
    shared = {"store": server.url, "name": "home", "token": "secret"}
    async with installation(tmp_path / "host", PROFILES, gateways=3, cluster=shared) as all_of_it:
        for number, gateway in enumerate(all_of_it.gateways):
            cluster = await until(gateway, lambda found: len(found["gateways"]) == 3)
            assert [each["name"] for each in cluster["gateways"]] == ["gateway0", "gateway1", "gateway2"]
            assert [each["name"] for each in cluster["gateways"] if each["own"]] == [f"gateway{number}"]
        one, two, three = all_of_it.gateways
        assert "degraded" not in await get(one, "/readyz")
        metrics = await get(one, "/metrics")
        assert "hostler_cluster_store_connected 1.0" in metrics
        assert "hostler_cluster_gateways 3.0" in metrics
        shown = await command(one, "status")
        assert f"Cluster home: store {server.url} connected" in shown
        assert "3 gateways: gateway0 (this one), gateway1, gateway2" in shown
        ids = {each["id"] for each in cluster["gateways"]}
        await three.stop()
        await until(one, lambda found: len(found["gateways"]) == 2)
        await three.start()
        cluster = await until(two, lambda found: len(found["gateways"]) == 3)
        assert {each["id"] for each in cluster["gateways"]} == ids


@needs_redis
async def test_requests_go_on_without_the_store_and_it_is_used_again_once_it_is_back(
    tmp_path: Path, server: RedisServer
) -> None:
    async with installation(tmp_path / "host", PROFILES, cluster={"store": server.url}) as all_of_it:
        one, two = all_of_it.gateways
        for gateway in (one, two):
            await until(gateway, lambda found: found["connected"] and len(found["gateways"]) == 2)
        faults = [(server.kill, server.start), (server.suspend, server.resume)]
        for break_it, mend_it in faults:
            break_it()
            for gateway in (one, two):
                cluster = await until(gateway, lambda found: not found["connected"])
                assert cluster["reason"]
                assert len(cluster["gateways"]) == 2
                ready = await get(gateway, "/readyz")
                assert ready["ready"] is True
                assert ready["degraded"] == ["store"]
                assert (await gateway.chat("a")).status_code == 200
            assert "hostler_cluster_store_connected 0.0" in await get(one, "/metrics")
            assert "the gateways go on with local values" in await command(one, "status")
            assert "the gateways go on with local values" in await command(one, "doctor", "a")
            mend_it()
            for gateway in (one, two):
                await until(gateway, lambda found: found["connected"])
                with anyio.fail_after(30):
                    while "degraded" in await get(gateway, "/readyz"):  # noqa: ASYNC110
                        await anyio.sleep(0.02)


@needs_redis
async def test_a_request_without_limits_makes_no_call_to_the_store(tmp_path: Path, server: RedisServer) -> None:
    async with installation(tmp_path / "host", PROFILES, cluster={"store": server.url}) as all_of_it:
        one, two = all_of_it.gateways
        await until(one, lambda found: found["connected"] and len(found["gateways"]) == 2)
        await two.stop()
        await until(one, lambda found: len(found["gateways"]) == 1)
        server("CONFIG", "RESETSTAT")
        for _ in range(100):
            assert (await one.chat("a")).status_code == 200
        # The gateway's own reports, one in two seconds, are all there is.
        assert server.count("evalsha") < 50


@needs_redis
async def test_no_token_of_an_answer_needs_the_store(tmp_path: Path, server: RedisServer) -> None:
    profiles = {"a": {"script": {"chunks": 1000, "chunk_delay": 0.002}}}
    rules = {"bob": KeyRules(tokens_per_day=10**6, requests_per_minute=100)}
    async with installation(
        tmp_path / "host", profiles, gateways=1, cluster={"store": server.url}, rules=rules
    ) as all_of_it:
        [gateway] = all_of_it.gateways
        await until(gateway, lambda found: found["connected"])
        body = {"model": "a", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
        async with gateway.http.stream(
            "POST", "/v1/chat/completions", json=body, headers=gateway.auth("bob")
        ) as answer:
            assert answer.status_code == 200
            began, lines = anyio.current_time(), []
            async for line in answer.aiter_lines():
                lines.append(line)
                if "word0" in line:
                    server("CONFIG", "RESETSTAT")
                elif '"word500' in line:
                    # The gateway's reports are all there is, about two in a second.
                    assert server.count("evalsha") <= 10 + 4 * (anyio.current_time() - began)
                    server.suspend()
        assert any('"word999' in line for line in lines)
        assert "data: [DONE]" in lines
        server.resume()


@needs_redis
async def test_limits_of_keys_hold_for_all_gateways_together(tmp_path: Path, server: RedisServer) -> None:
    rules = {"bob": KeyRules(tokens_per_day=1), "carol": KeyRules(tokens_per_day=10**6)}
    async with installation(
        tmp_path / "host", PROFILES, gateways=3, cluster={"store": server.url}, rules=rules
    ) as all_of_it:
        gateways = all_of_it.gateways
        for gateway in gateways:
            await until(gateway, lambda found: found["connected"] and len(found["gateways"]) == 3)
        # Something of the limit is left, so the first request is admitted.
        assert [(await each.chat("a", "bob")).status_code for each in gateways] == [200, 429, 429]
        server.kill()
        for gateway in gateways:
            await until(gateway, lambda found: not found["connected"])
            assert (await gateway.chat("a", "bob")).status_code == 429
        server.start()
        for gateway in gateways:
            await until(gateway, lambda found: found["connected"])
            assert (await gateway.chat("a", "bob")).status_code == 429
        for gateway in gateways:
            assert (await gateway.chat("a", "carol")).status_code == 200

        async def used() -> list[int]:
            keys = [await get(gateway, "/admin/keys") for gateway in gateways]
            return [key["used"]["requests"] for found in keys for key in found if key["name"] == "carol"]

        with anyio.fail_after(30):
            while await used() != [3, 3, 3]:  # noqa: ASYNC110
                await anyio.sleep(0.02)


@needs_redis
async def test_a_login_is_good_at_all_gateways_until_the_logout_at_any(tmp_path: Path, server: RedisServer) -> None:
    shared = {"store": server.url, "token": "secret"}
    async with installation(tmp_path / "host", PROFILES, cluster=shared) as all_of_it:
        one, two = all_of_it.gateways
        for gateway in (one, two):
            await until(gateway, lambda found: found["connected"] and len(found["gateways"]) == 2)
        key = one.auth()["Authorization"].removeprefix("Bearer ")
        answer = await one.http.post("/ui/login", json={"key": key})
        assert answer.status_code == 200
        [session] = answer.cookies.values()

        async def status(gateway: GatewayProgram, path: str = "/admin/status", method: str = "GET") -> int:
            port = gateway.running.address.rpartition(":")[2]
            headers = {"Cookie": f"hostler-{port}={session}", "Origin": gateway.running.address}
            return (await gateway.http.request(method, path, headers=headers)).status_code

        one.http.cookies.clear()
        assert await status(one) == 200
        assert await status(two) == 200
        assert await status(two, "/ui/logout", "POST") == 303
        assert await status(two) == 401
        assert await status(one) == 401


@needs_redis
async def test_every_gateway_shows_and_cancels_the_requests_of_all(tmp_path: Path, server: RedisServer) -> None:
    profiles = {"a": {"script": {"chunks": 1000, "chunk_delay": 0.05}}}
    async with installation(tmp_path / "host", profiles, cluster={"store": server.url}) as all_of_it:
        one, two = all_of_it.gateways
        for gateway in (one, two):
            await until(gateway, lambda found: found["connected"] and len(found["gateways"]) == 2)
        answers = []

        async def ask() -> None:
            answers.append(await one.chat("a"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            with anyio.fail_after(30):
                while not (found := (await get(two, "/admin/status"))["in_flight"]):  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            assert [(each["gateway"], each["client"]) for each in found] == [("gateway0", "anna")]
            with anyio.fail_after(30):
                while not answers:
                    body = {"id": found[0]["id"]}
                    await two.http.post("/admin/cancel", json=body, headers=two.auth())
                    await anyio.sleep(0.05)
        assert answers[0].status_code != 200


@needs_redis
async def test_a_conversation_goes_on_at_another_gateway(tmp_path: Path, server: RedisServer) -> None:
    async with installation(tmp_path / "host", PROFILES, cluster={"store": server.url}) as all_of_it:
        one, two = all_of_it.gateways
        for gateway in (one, two):
            await until(gateway, lambda found: found["connected"])

        async def respond(gateway: GatewayProgram, **more: Any) -> httpx.Response:
            body = {"model": "a", "input": "Hello", **more}
            return await gateway.http.post("/v1/responses", json=body, headers=gateway.auth())

        first = (await respond(one)).json()
        path = f"/v1/responses/{first['id']}"
        with anyio.fail_after(30):
            while (shown := await two.http.get(path, headers=two.auth())).status_code != 200:  # noqa: ASYNC110
                await anyio.sleep(0.02)
        assert shown.json()["output"] == first["output"]
        assert (await two.http.get(path, headers=two.auth("bob"))).status_code == 404
        second = await respond(two, previous_response_id=first["id"])
        assert second.status_code == 200
        with anyio.fail_after(30):
            while (await respond(one, previous_response_id=second.json()["id"])).status_code != 200:  # noqa: ASYNC110
                await anyio.sleep(0.02)
        assert (await two.http.delete(path, headers=two.auth())).status_code == 200
        with anyio.fail_after(30):
            while (await one.http.get(path, headers=one.auth())).status_code != 404:  # noqa: ASYNC110
                await anyio.sleep(0.02)


async def test_gateways_start_without_the_store(tmp_path: Path) -> None:
    shared = {"store": f"unix://{tmp_path}/none.sock"}
    async with installation(tmp_path / "host", PROFILES, gateways=1, cluster=shared) as all_of_it:
        [gateway] = all_of_it.gateways
        assert (await get(gateway, "/readyz"))["degraded"] == ["store"]
        assert (await gateway.chat("a")).status_code == 200


async def test_without_a_cluster_nothing_of_it_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "hostler.yaml"
    path.write_text(json.dumps({"backends": {"lan": {"kind": "openai", "url": "http://127.0.0.1:9"}}}))
    program = (
        "import sys; from pathlib import Path; from hostler.gateway.app import create_app; "
        f"from hostler.gateway.config import read; create_app(read(Path({str(path)!r}))); "
        "sys.exit(any(name.partition('.')[0] in ('redis', 'hiredis') or 'gateway.cluster.' in name for name in sys.modules))"
    )
    environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    done = await anyio.to_thread.run_sync(lambda: subprocess.run([sys.executable, "-c", program], env=environ))
    assert done.returncode == 0


async def test_without_the_extra_the_error_names_the_package(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "__init__.py").write_text("raise ModuleNotFoundError")
    path = tmp_path / "hostler.yaml"
    backends = {"lan": {"kind": "llamacpp", "url": "http://127.0.0.1:9", "models": {"m": "m"}}}
    gateway = {"listen": ["127.0.0.1:0"]}
    path.write_text(json.dumps({"gateway": gateway, "backends": backends, "cluster": {"store": "redis://127.0.0.1"}}))
    shadowed = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    arguments = [sys.executable, "-m", "hostler.gateway", "gateway", "--config", str(path)]
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(
            arguments, env={**os.environ, "PYTHONPATH": shadowed}, capture_output=True, text=True, timeout=60
        )
    )
    assert done.returncode != 0
    assert "pip install 'hostler[cluster]'" in done.stderr
    assert "Traceback" not in done.stderr

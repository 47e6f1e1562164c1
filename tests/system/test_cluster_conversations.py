"""A conversation that goes on at another gateway: it stays at the host that holds it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.ports import free_port
from fakes.redis_server import RedisServer, needs_redis, redis_server
from system.running_gateway import remote_supervisor
from system.several_gateways import GatewayProgram, installation
from system.test_cluster import get, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180), needs_redis]

PROFILES: dict[str, Any] = {"a": {"context": 100_000, "script": {"chunks": 20}}}
#: Longer to read than a model takes to load.
STORY = [{"role": "user", "content": "Tell me a story. " * 5000}]


async def until_host(
    gateway: GatewayProgram, name: str, condition: Callable[[dict[str, Any]], bool], expected: bool = True
) -> None:
    with anyio.fail_after(30):
        while True:
            hosts = {each["backend"]: each for each in (await get(gateway, "/admin/status"))["hosts"]}
            if condition(hosts[name]) is expected:
                return
            await anyio.sleep(0.02)


def is_reachable(host: dict[str, Any]) -> bool:
    return bool(host["reachable"])


def has_answered(host: dict[str, Any]) -> bool:
    # What a supervisor publishes of an answer, gateways know all at once.
    return any(each["tokens_per_s"] is not None for each in host["engines"] if each["model"] == "a")


async def ask(gateway: GatewayProgram, messages: list[dict[str, Any]], **headers: str) -> tuple[str, dict[str, Any]]:
    """Which host has answered, and the answer."""
    body = {"model": "a", "messages": messages}
    answer = await gateway.http.post("/v1/chat/completions", json=body, headers={**gateway.auth(), **headers})
    assert answer.status_code == 200, answer.text
    return answer.headers["x-hostler-backend"], answer.json()["choices"][0]["message"]


async def until_served(gateway: GatewayProgram, *names: str) -> None:
    """Wait until the process that serves the test's connection has had an answer of each of these hosts."""
    for name in names:
        body = {"model": "a", "messages": [{"role": "user", "content": f"Hello, {name}."}]}
        headers = {**gateway.auth(), "X-Hostler-Only": name}
        with anyio.fail_after(30):
            while (await gateway.http.post("/v1/chat/completions", json=body, headers=headers)).status_code != 200:  # noqa: ASYNC110
                await anyio.sleep(0.05)


def continued(begun: list[dict[str, Any]], reply: dict[str, Any]) -> list[dict[str, Any]]:
    return [*begun, reply, {"role": "user", "content": "Go on."}]


@pytest.fixture
def backends() -> dict[str, Any]:
    """Two hosts with the model, of which the first is chosen if both are equal."""
    ports = {name: free_port() for name in ("one", "two")}
    return {name: {"kind": "supervisor", "url": f"http://127.0.0.1:{port}"} for name, port in ports.items()}


@asynccontextmanager
async def host(folder: Path, backends: dict[str, Any], name: str) -> AsyncIterator[None]:
    """Run one of the hosts until the context ends."""
    port = int(backends[name]["url"].rpartition(":")[2])
    async with remote_supervisor(folder / name, PROFILES, port=port) as running:
        backends[name] = {**running.backend, "url": backends[name]["url"]}
        yield


async def test_a_conversation_goes_on_at_its_host_through_another_gateway(
    tmp_path: Path, backends: dict[str, Any]
) -> None:
    with redis_server(tmp_path / "redis") as server:
        async with (
            host(tmp_path, backends, "one"),
            host(tmp_path, backends, "two"),
            installation(tmp_path / "host", {"b": {}}, cluster={"store": server.url}, backends=backends) as everything,
        ):
            first, second = everything.gateways
            for gateway in (first, second):
                await until(gateway, lambda found: found["connected"] and len(found["gateways"]) == 2)
                for name in backends:
                    await until_host(gateway, name, is_reachable)
            for number in range(2):
                begun = [{"role": "user", "content": f"{number}. {STORY[0]['content']}"}]
                backend, reply = await ask(first, begun, **{"X-Hostler-Only": "two"})
                assert backend == "two"
                await until_host(second, "two", has_answered)
                assert (await ask(second, continued(begun, reply)))[0] == "two"
                # Hosts say themselves what they have answered: nothing of that needs the store.
                server.kill()
                await until(second, lambda found: not found["connected"])
            assert (await ask(second, [{"role": "user", "content": "Another one."}]))[0] in backends


@pytest.mark.parametrize(("with_store", "workers"), [(True, 1), (True, 2), (False, 1)])
async def test_gateways_remember_what_a_host_has_forgotten(
    tmp_path: Path, backends: dict[str, Any], with_store: bool, workers: int
) -> None:
    with redis_server(tmp_path / "redis") as server:
        async with host(tmp_path, backends, "one"):
            async with host(tmp_path, backends, "two"):
                pass
            async with installation(
                tmp_path / "host",
                {"b": {}},
                cluster={"store": server.url},
                backends=backends,
                settings={"workers": workers},
            ) as everything:
                first, second = everything.gateways
                await until(first, lambda found: found["connected"])
                await second.stop()
                async with host(tmp_path, backends, "two"):
                    await until_served(first, "two")
                    backend, reply = await ask(first, STORY, **{"X-Hostler-Only": "two"})
                    assert backend == "two"
                    await _until_noted(server, 2)
                await until_host(first, "two", is_reachable, expected=False)
                if not with_store:
                    server.kill()
                # A gateway that has never seen the conversation, and a host that has forgotten it.
                await second.start()
                second.http.base_url = second.running.address
                async with host(tmp_path, backends, "two"):
                    await until_served(second, *backends)
                    if with_store:
                        await until(second, lambda found: found["connected"])
                        # With the step that has written its own, it has read those before.
                        await _until_noted(server, 4)
                        await get(second, "/admin/status")
                    assert (await ask(second, continued(STORY, reply)))[0] == ("two" if with_store else "one")


async def _until_noted(server: RedisServer, answers: int) -> None:
    """Wait until the store has so many answers of the model. It has no prompts."""
    with anyio.fail_after(30):
        while (found := server("XRANGE", "hostler:hostler:conversations", "-", "+")).count(',"a","') < answers:  # noqa: ASYNC110
            await anyio.sleep(0.02)
    assert "Tell me a story" not in found

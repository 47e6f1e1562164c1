"""Several hosts with the same model: which one serves, and requests that wait at one while another could serve them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from system.running_gateway import (
    RemoteSupervisor,
    RunningGateway,
    StartGateway,
    first_token,
    remote_supervisor,
)

pytestmark = pytest.mark.anyio


class Hosts:
    """Two hosts behind a gateway, and what requests of the test have brought."""

    def __init__(self, gateway: RunningGateway, one: RemoteSupervisor, two: RemoteSupervisor) -> None:
        self.gateway = gateway
        self.one = one
        self.two = two
        self.answered: list[str] = []

    async def ask(self, model: str, **more: Any) -> None:
        answer = await self.gateway.chat(model, **more)
        assert answer.status_code == 200, answer.text
        self.answered.append(answer.headers["x-hostler-backend"])

    async def until_loaded(self, **models: str) -> None:
        """Wait until the gateway knows that these models are loaded on these hosts."""

        def so(hosts: dict[str, dict[str, Any]]) -> bool:
            return all(
                any(each["model"] == model and each["phase"] == "ready" for each in hosts[name]["engines"])
                for name, model in models.items()
            )

        await self.gateway.until_status(so)

    async def until_waiting(self, host: str) -> None:
        await self.gateway.until_status(lambda hosts: hosts[host]["waiting"] == 1)


@asynccontextmanager
async def two_hosts(
    start_gateway: StartGateway, folder: Path, one: dict[str, Any], two: dict[str, Any], **placement: float
) -> AsyncIterator[Hosts]:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(remote_supervisor(folder / "one", one))
        second = await stack.enter_async_context(remote_supervisor(folder / "two", two))
        backends = {"one": first.backend, "two": second.backend}
        gateway = await stack.enter_async_context(
            start_gateway({}, gateway={"placement": placement}, backends=backends)
        )
        yield Hosts(gateway, first, second)


def held(flag: Path) -> dict[str, Any]:
    """A model whose answers end when the flag is set."""
    return {"script": {"last_when": str(flag)}}


async def test_a_request_that_waits_is_served_by_the_host_that_becomes_free_first(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    never, soon = tmp_path / "never", tmp_path / "soon"
    async with two_hosts(start_gateway, tmp_path, {"a": held(never)}, {"a": held(soon)}) as hosts:
        for each in (hosts.one, hosts.two):
            await each.manager.switch("a")
        await hosts.until_loaded(one="a", two="a")
        async with hosts.gateway.stream("a") as first, hosts.gateway.stream("a") as second:
            for answer in (first, second):
                await first_token(answer)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hosts.ask, "a")
                await hosts.until_waiting("one")  # since it is the first of equals
                soon.touch()
            assert hosts.answered == ["two"]
            await hosts.gateway.until_status(lambda found: found["one"]["waiting"] == 0)
            never.touch()


async def test_a_model_is_loaded_by_another_host_when_the_wait_is_long_and_unloaded_when_that_is_idle(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    never, one, two = tmp_path / "never", {}, {}
    one["a"] = held(never)
    two["b"], two["a"] = {}, {}
    rules = {"replica_wait_s": 0.2, "replica_idle_s": 0.3}
    async with two_hosts(start_gateway, tmp_path, one, two, **rules) as hosts:
        await hosts.one.manager.switch("a")
        await hosts.ask("b")
        await hosts.until_loaded(one="a", two="b")
        async with hosts.gateway.stream("a") as first:
            await first_token(first)
            # The other host has another model loaded, and nothing to do.
            await hosts.ask("a")
            assert hosts.answered == ["two", "two"]
            assert hosts.two.starts() == ["b", "a"]
            await hosts.two.until(lambda: hosts.two.events("stop", "a"))
            never.touch()
        assert hosts.one.events("stop") == []


async def test_no_other_host_loads_a_model_for_a_short_wait(start_gateway: StartGateway, tmp_path: Path) -> None:
    soon = tmp_path / "soon"
    async with two_hosts(start_gateway, tmp_path, {"a": held(soon)}, {"b": {}, "a": {}}, replica_wait_s=600.0) as hosts:
        await hosts.one.manager.switch("a")
        await hosts.ask("b")
        await hosts.until_loaded(one="a", two="b")
        async with hosts.gateway.stream("a") as first, anyio.create_task_group() as tasks:
            await first_token(first)
            tasks.start_soon(hosts.ask, "a")
            await hosts.until_waiting("one")
            soon.touch()
        assert hosts.answered == ["two", "one"]
        assert hosts.two.starts() == ["b"]


async def test_a_conversation_stays_at_the_host_that_knows_it(start_gateway: StartGateway, tmp_path: Path) -> None:
    long = {"a": {"script": {"chunks": 20}}}
    async with two_hosts(start_gateway, tmp_path, long, long) as hosts:
        for each in (hosts.one, hosts.two):
            await each.manager.switch("a")
        await hosts.until_loaded(one="a", two="a")
        messages = [{"role": "user", "content": "Tell me a story. " * 40}]
        body = {"model": "a", "messages": messages}
        answer = await hosts.gateway.http.post("/v1/chat/completions", json=body, headers={"X-Hostler-Only": "two"})
        assert answer.headers["x-hostler-backend"] == "two"
        # What the supervisor publishes of an answer, the gateway knows all at once.
        await hosts.gateway.until_status(lambda found: found["two"]["engines"][0]["tokens_per_s"] is not None)
        reply = answer.json()["choices"][0]["message"]
        await hosts.ask("a", messages=[*messages, reply, {"role": "user", "content": "Go on."}])
        await hosts.ask("a")
        assert hosts.answered == ["two", "one"]


async def test_the_route_shows_the_hosts_in_their_order_and_why(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with two_hosts(start_gateway, tmp_path, {"a": {}}, {"a": {}}) as hosts:
        await hosts.two.manager.switch("a")
        await hosts.until_loaded(two="a")
        route = (await hosts.gateway.http.get("/admin/route", params={"model": "a"})).json()
        assert route["first"] == "two"
        assert [hop["backend"] for hop in route["hops"]] == ["two", "one"]
        reasons = [hop["reasons"] for hop in route["hops"]]
        assert reasons[0] == ["loaded, with a free slot"]
        assert reasons[1][0].startswith("has to load it: about ")
        assert reasons[1][1] == "not needed while the wait elsewhere is at most 2 s"

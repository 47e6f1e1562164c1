"""Hosts that are taken out of service for maintenance: nothing fails, and everyone can see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from system.running_gateway import RunningGateway, StartGateway, first_token, remote_supervisor

pytestmark = pytest.mark.anyio


async def drain(gateway: RunningGateway, host: str, draining: bool = True) -> dict[str, Any]:
    answer = await gateway.action("drain", host=host, draining=draining)
    assert answer.status_code == 200, answer.text
    await gateway.until_status(lambda hosts: hosts[host]["host"]["draining"] is draining)
    return answer.json()  # type: ignore[no-any-return]


async def backend_of(gateway: RunningGateway, model: str) -> str:
    answer = await gateway.chat(model)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-hostler-backend"]


async def test_work_moves_to_another_host_without_an_error(start_gateway: StartGateway, tmp_path: Path) -> None:
    last = tmp_path / "last"
    script = {"script": {"last_when": str(last)}}
    async with (
        remote_supervisor(tmp_path / "one", {"a": script}) as one,
        remote_supervisor(tmp_path / "two", {"a": {"script": {"ready_when": str(tmp_path / "ready")}}}) as two,
        start_gateway(
            {},
            gateway={"placement": {"replica_wait_s": 600}},
            backends={"one": one.backend, "two": two.backend},
        ) as gateway,
        anyio.create_task_group() as tasks,
    ):
        answered: list[str] = []

        async def ask() -> None:
            answered.append(await backend_of(gateway, "a"))

        await one.manager.switch("a")
        await gateway.until_status(lambda hosts: any(each["phase"] == "ready" for each in hosts["one"]["engines"]))
        async with gateway.stream("a") as running:
            lines = await first_token(running)
            route = (await gateway.http.get("/admin/route", params={"model": "a"})).json()
            assert route["first"] == "one"
            tasks.start_soon(ask)
            await gateway.until_status(lambda hosts: hosts["one"]["waiting"] == 1)
            view = await drain(gateway, "one")
            assert (view["serving"], view["loaded"], view["only_here"]) == (1, ["a"], {})
            route = (await gateway.http.get("/admin/route", params={"model": "a"})).json()
            assert {hop["backend"]: hop["reason"] for hop in route["hops"]} == {"one": "draining", "two": None}
            (tmp_path / "ready").touch()
            await gateway.until(lambda: answered)
            assert await backend_of(gateway, "a") == "two"
            assert one.events("stop") == []
            last.touch()
            assert "data: [DONE]" in [line async for line in lines]
        await one.until(lambda: one.events("stop", "a"))
        assert answered == ["two"]
        metrics = (await gateway.http.get("/metrics")).text
        assert 'hostler_host_draining{backend="one"} 1' in metrics
        assert (await gateway.http.get("/readyz")).json()["ready"]
        await drain(gateway, "one", draining=False)
        assert await backend_of(gateway, "a") == "two"  # since it has the model


async def test_what_only_a_drained_host_serves_waits_until_it_is_back(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway, anyio.create_task_group() as tasks:
        assert (await drain(gateway, "local"))["only_here"] == {"a": 0}
        answers: list[int] = []

        async def ask() -> None:
            answers.append((await gateway.chat("a")).status_code)

        tasks.start_soon(ask)
        waiting: dict[str, int] = {}
        with anyio.fail_after(20):
            while waiting != {"a": 1}:
                waiting = (await drain(gateway, "local"))["only_here"]
        assert answers == []
        await drain(gateway, "local", draining=False)
        await gateway.until(lambda: answers)
        assert answers == [200]


async def test_waiting_for_a_drained_host_ends_with_the_reason(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}, gateway={"queue": {"max_wait_s": 0.1}}) as gateway:
        await drain(gateway, "local")
        answer = await gateway.chat("a")
        assert answer.status_code == 503
        assert "local is being drained for maintenance" in answer.json()["error"]["message"]


async def test_a_drained_host_stays_drained_over_restarts(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"preload": True}}) as gateway:
        await gateway.until(lambda: gateway.events("ready", "a"))
        assert (await drain(gateway, "local"))["remembered"] is True
        await gateway.until(lambda: gateway.events("stop", "a"))
    async with start_gateway({"a": {"preload": True}}) as gateway:
        await gateway.until_status(lambda hosts: (hosts["local"]["host"] or {}).get("draining") is True)
        assert gateway.starts() == ["a"]
        await drain(gateway, "local", draining=False)
        await gateway.until(lambda: gateway.starts() == ["a", "a"])


async def test_an_unknown_host_is_named_with_those_that_exist(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        answer = await gateway.action("drain", host="pc2")
        assert answer.status_code == 404
        assert "pc2 is no host; hosts are: local" in answer.json()["error"]["message"]

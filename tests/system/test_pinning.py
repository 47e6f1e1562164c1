"""Pinned models are never evicted or unloaded for idleness, also after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from system.running_gateway import RunningGateway, StartGateway, remote_supervisor

pytestmark = pytest.mark.anyio


async def phases(gateway: RunningGateway) -> dict[str, str]:
    (host, *_) = (await gateway.status())["hosts"]
    return {engine["model"]: engine["phase"] for engine in host["engines"]}


async def idle(gateway: RunningGateway, model: str) -> float | None:
    (host, *_) = (await gateway.status())["hosts"]
    return next(engine["idle_until"] for engine in host["engines"] if engine["model"] == model)  # type: ignore[no-any-return]


def pinned(hosts: dict[str, dict[str, Any]], backend: str = "local") -> list[str]:
    return [each["name"] for each in hosts[backend]["host"]["profiles"] if each["pinned"]]


async def test_a_pinned_model_is_never_evicted(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}, "b": {}, "c": {}}) as gateway:
        await gateway.chat("a")
        answer = await gateway.action("pin", model="a", pinned=True)
        assert answer.json() == {"model": "a", "pinned": True, "backends": ["local"], "remembered": True}
        await gateway.until_status(lambda hosts: pinned(hosts) == ["a"])
        await gateway.chat("b")
        await gateway.chat("c")
        assert await phases(gateway) == {"a": "ready", "b": "cold", "c": "ready"}
        await gateway.action("pin", model="a", pinned=False)
        await gateway.until_status(lambda hosts: pinned(hosts) == [])
        await gateway.chat("b")
        assert await phases(gateway) == {"a": "cold", "b": "ready", "c": "cold"}
    assert gateway.starts() == ["a", "b", "c", "b"]


async def test_a_pinned_model_has_no_idle_timeout_until_it_is_unpinned(
    start_gateway: StartGateway,
) -> None:
    async with start_gateway({"a": {"ttl_s": 3600}}) as gateway:
        await gateway.chat("a")
        assert await idle(gateway, "a") is not None
        await gateway.action("pin", model="a")
        await gateway.until_status(lambda hosts: hosts["local"]["engines"][0]["idle_until"] is None)
        # Not even when a client says that it needs it no longer.
        await gateway.http.post("/api/generate", json={"model": "a", "prompt": "Hi", "stream": False, "keep_alive": 0})
        assert (await phases(gateway), gateway.events("stop")) == ({"a": "ready"}, [])
        await gateway.action("pin", model="a", pinned=False)
        await gateway.until_status(lambda hosts: hosts["local"]["engines"][0]["idle_until"] is not None)


async def test_pins_survive_a_restart(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}, "b": {}}) as gateway:
        await gateway.action("pin", model="b")
    async with start_gateway({"a": {}, "b": {}}) as gateway:
        await gateway.until_status(lambda hosts: hosts["local"]["engines"][1]["phase"] == "ready")
        assert pinned({host["backend"]: host for host in (await gateway.status())["hosts"]}) == ["b"]
    assert gateway.starts() == ["b"]


async def test_a_pin_can_name_one_of_several_hosts(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with (
        remote_supervisor(tmp_path / "one", {"a": {}}) as one,
        remote_supervisor(tmp_path / "two", {"a": {}}) as two,
        start_gateway({}, backends={"one": one.backend, "two": two.backend}) as gateway,
    ):
        answer = await gateway.action("pin", model="a", backend="two")
        assert answer.json()["backends"] == ["two"]
        await gateway.until_status(lambda hosts: pinned(hosts, "two") == ["a"])
        assert not one.manager.status_now().profiles[0].pinned
        wrong = await gateway.action("pin", model="a", backend="three")
        assert (wrong.status_code, "one, two" in wrong.json()["error"]["message"]) == (404, True)
        assert (await gateway.action("pin", model="x")).status_code == 404
        assert (await gateway.action("pin", model="a", pinned="yes")).status_code == 400
        await two.stop_listening()
        gone = await gateway.action("pin", model="a", backend="two")
        assert (gone.status_code, "does not respond" in gone.json()["error"]["message"]) == (502, True)

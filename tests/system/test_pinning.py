"""Models that stay because an operator said so: whoever wants their room, however long nobody asks, over restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from system.house import House, OpenHouse, another_host

pytestmark = pytest.mark.anyio


async def phases(house: House) -> dict[str, str]:
    (host, *_) = (await house.status())["hosts"]
    return {engine["model"]: engine["phase"] for engine in host["engines"]}


async def idle(house: House, model: str) -> float | None:
    (host, *_) = (await house.status())["hosts"]
    return next(engine["idle_until"] for engine in host["engines"] if engine["model"] == model)  # type: ignore[no-any-return]


def pinned(hosts: dict[str, dict[str, Any]], backend: str = "local") -> list[str]:
    return [each["name"] for each in hosts[backend]["host"]["profiles"] if each["pinned"]]


async def test_a_pinned_model_makes_room_for_nobody(open_house: OpenHouse) -> None:
    async with open_house({"a": {}, "b": {}, "c": {}}) as house:
        await house.chat("a")
        answer = await house.order("pin", model="a", pinned=True)
        assert answer.json() == {"model": "a", "pinned": True, "backends": ["local"], "remembered": True}
        await house.until_status(lambda hosts: pinned(hosts) == ["a"])
        await house.chat("b")
        await house.chat("c")
        assert await phases(house) == {"a": "ready", "b": "cold", "c": "ready"}
        await house.order("pin", model="a", pinned=False)
        await house.until_status(lambda hosts: pinned(hosts) == [])
        await house.chat("b")
        assert await phases(house) == {"a": "cold", "b": "ready", "c": "cold"}
    assert house.starts() == ["a", "b", "c", "b"]


async def test_a_pinned_model_never_idles_out_and_begins_to_when_it_is_pinned_no_more(open_house: OpenHouse) -> None:
    async with open_house({"a": {"ttl_s": 3600}}) as house:
        await house.chat("a")
        assert await idle(house, "a") is not None
        await house.order("pin", model="a")
        await house.until_status(lambda hosts: hosts["local"]["engines"][0]["idle_until"] is None)
        # Not even when a client says that it needs it no longer.
        await house.http.post("/api/generate", json={"model": "a", "prompt": "Hi", "stream": False, "keep_alive": 0})
        assert (await phases(house), house.events("stop")) == ({"a": "ready"}, [])
        await house.order("pin", model="a", pinned=False)
        await house.until_status(lambda hosts: hosts["local"]["engines"][0]["idle_until"] is not None)


async def test_pins_are_kept_over_a_restart(open_house: OpenHouse) -> None:
    async with open_house({"a": {}, "b": {}}) as house:
        await house.order("pin", model="b")
    async with open_house({"a": {}, "b": {}}) as house:
        await house.until_status(lambda hosts: hosts["local"]["engines"][1]["phase"] == "ready")
        assert pinned({host["backend"]: host for host in (await house.status())["hosts"]}) == ["b"]
    assert house.starts() == ["b"]


async def test_one_host_of_several_is_named(open_house: OpenHouse, tmp_path: Path) -> None:
    async with (
        another_host(tmp_path / "one", {"a": {}}) as one,
        another_host(tmp_path / "two", {"a": {}}) as two,
        open_house({}, backends={"one": one.backend, "two": two.backend}) as house,
    ):
        answer = await house.order("pin", model="a", backend="two")
        assert answer.json()["backends"] == ["two"]
        await house.until_status(lambda hosts: pinned(hosts, "two") == ["a"])
        assert not one.manager.status_now().profiles[0].pinned
        wrong = await house.order("pin", model="a", backend="three")
        assert (wrong.status_code, "one, two" in wrong.json()["error"]["message"]) == (404, True)
        assert (await house.order("pin", model="x")).status_code == 404
        assert (await house.order("pin", model="a", pinned="yes")).status_code == 400
        await two.fall_silent()
        gone = await house.order("pin", model="a", backend="two")
        assert (gone.status_code, "does not respond" in gone.json()["error"]["message"]) == (502, True)

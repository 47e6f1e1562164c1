"""Idle models: when they are stopped, and when not."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from fakes.gate import Gate
from system.house import House, OpenHouse, is_whole

pytestmark = pytest.mark.anyio

Gates = Callable[[str], Gate]


async def stayed(house: House, since: str, model: str = "a") -> float:
    """Wait until it has stopped; how long after the last note of this kind that was."""
    await house.until(lambda: len(house.events("stop", model)) == len(house.starts(model)))
    stop = house.events("stop", model)[-1]["time"]
    return float(stop - max(note["time"] for note in house.events(since, model) if note["time"] <= stop))


async def test_a_model_is_stopped_when_unused_for_its_ttl(open_house: OpenHouse) -> None:
    unused: list[float] = []
    async with open_house({"a": {"ttl_s": 0.6}}) as house:
        # The best of a few, here and below: what a machine does that is busy with other things is not the question.
        while not unused or (min(unused) > 0.6 + 1.0 and len(unused) < 4):
            await house.chat("a")
            unused.append(await stayed(house, since="done"))
    assert 0.6 <= min(unused) <= 0.6 + 1.0


async def test_each_request_restarts_the_idle_time(open_house: OpenHouse) -> None:
    async with open_house({"a": {"ttl_s": 1.0}}) as house:
        lived: list[float] = []
        while not lived or (max(lived) < 2.0 and len(lived) < 4):
            for _ in range(9):
                await house.chat("a")
                await anyio.sleep(0.3)
            # Never sooner than that, however long a request was on its way.
            assert await stayed(house, since="done") >= 1.0
            lived.append(house.events("stop")[-1]["time"] - house.events("ready")[-1]["time"])
    assert max(lived) >= 2.0


async def test_a_model_is_never_stopped_in_mid_answer(open_house: OpenHouse, gates: Gates) -> None:
    last = gates("last")
    async with open_house({"a": {"ttl_s": 0.2, "script": {"last_when": last.path}}}) as house:
        async with anyio.create_task_group() as tasks, house.stream("a") as answer:
            tasks.start_soon(open_later, last)
            text = (await answer.aread()).decode()
        assert is_whole(text)
        await house.until(lambda: house.events("stop"))
        assert house.starts() == ["a"]


async def open_later(gate: Gate) -> None:
    """Not to wait for something: an answer takes several times the ttl."""
    await anyio.sleep(1.0)
    gate.open()


async def test_a_model_loaded_without_a_request_stays_for_its_ttl(open_house: OpenHouse) -> None:
    unused: list[float] = []
    async with open_house({"a": {"ttl_s": 0.6}, "b": {}}) as house:
        while not unused or (min(unused) > 0.6 + 1.0 and len(unused) < 4):
            assert (await house.order("load", model="a")).json() == {"model": "a", "state": "loaded"}
            unused.append(await stayed(house, since="ready"))
        assert 0.6 <= min(unused) <= 0.6 + 1.0
        # Without a ttl it stays.
        await house.order("load", model="b")
        with pytest.raises(TimeoutError):
            await house.until(lambda: house.events("stop", "b"), 0.8)


async def test_a_request_during_an_idle_stop_is_served_by_a_new_process(open_house: OpenHouse, gates: Gates) -> None:
    gone = gates("gone")
    profile = {"ttl_s": 0.2, "stop_grace_s": 60, "script": {"gone_when": gone.path}}
    async with open_house({"a": profile}) as house:
        await house.chat("a")
        first = house.events("start")[0]["pid"]
        await house.until(lambda: house.events("told"))
        answers: list[int] = []

        async def ask() -> None:
            answers.append((await house.chat("a")).status_code)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await house.until_counts(0, 1)
            gone.open()
        assert answers == [200]
        assert [note["pid"] for note in house.events("stop")][:1] == [first]
        assert house.starts()[:2] == ["a", "a"]


@pytest.mark.parametrize("long", ["10m", 600, -1])
async def test_keep_alive_replaces_the_idle_time(open_house: OpenHouse, long: object) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    async with open_house({"a": {"ttl_s": 0.3}, "b": {}}) as house:
        asked = {"model": "a", "messages": messages, "stream": False, "keep_alive": long}
        assert (await house.http.post("/api/chat", json=asked)).status_code == 200
        with pytest.raises(TimeoutError):
            await house.until(lambda: house.events("stop"), 0.8)
        asked = {"model": "b", "messages": messages, "stream": False, "keep_alive": 0}
        assert (await house.http.post("/api/chat", json=asked)).status_code == 200
        # By itself it would stay for ever.
        await house.until(lambda: house.events("stop", "b"))

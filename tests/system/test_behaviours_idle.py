"""Models that nobody uses any more: when they are stopped, and when not."""

from __future__ import annotations

import time

import anyio
import pytest
from system.house import OpenHouse

pytestmark = pytest.mark.anyio


async def test_a_model_is_stopped_when_nobody_has_used_it_for_its_ttl(open_house: OpenHouse) -> None:
    async with open_house({"a": {"ttl_s": 0.6}}) as house:
        await house.chat("a")
        used = time.time()
        await house.until(lambda: house.events("stop"), 3.0)
        assert 0.5 <= house.events("stop")[0]["time"] - used <= 0.6 + 1.0


async def test_each_request_sets_the_idle_clock_back(open_house: OpenHouse) -> None:
    async with open_house({"a": {"ttl_s": 0.6}}) as house:
        began = time.time()
        while time.time() - began < 1.5:
            await house.chat("a")
            await anyio.sleep(0.2)
        used = time.time() - 0.2
        await house.until(lambda: house.events("stop"), 3.0)
        assert house.starts() == ["a"]
        assert house.events("stop")[0]["time"] - used >= 0.5


async def test_a_model_is_never_stopped_in_mid_answer(open_house: OpenHouse) -> None:
    async with open_house({"a": {"ttl_s": 0.2, "script": {"chunks": 20, "chunk_delay": 0.05}}}) as house:
        async with house.stream("a") as answer:
            text = (await answer.aread()).decode()
        ended = time.time()
        assert "data: [DONE]" in text
        await house.until(lambda: house.events("stop"), 3.0)
        assert house.events("stop")[0]["time"] >= ended


async def test_a_model_that_was_loaded_for_nobody_stays_for_its_ttl(open_house: OpenHouse) -> None:
    async with open_house({"a": {"ttl_s": 0.6}, "b": {}}) as house:
        assert (await house.order("load", model="a")).json() == {"model": "a", "state": "loaded"}
        ready = house.events("ready")[0]["time"]
        await house.until(lambda: house.events("stop"), 3.0)
        assert 0.6 <= house.events("stop")[0]["time"] - ready <= 0.6 + 1.0
        # Without a ttl it stays.
        await house.order("load", model="b")
        with pytest.raises(TimeoutError):
            await house.until(lambda: house.events("stop", "b"), 0.8)


async def test_a_request_during_an_idle_stop_is_served_by_a_fresh_process(open_house: OpenHouse) -> None:
    async with open_house({"a": {"ttl_s": 0.2, "script": {"slow_exit": 0.5}}}) as house:
        await house.chat("a")
        first = house.events("start")[0]["pid"]
        await house.until(lambda: [m.state for m in house.fleet.status_now().models] == ["stopping"], 3.0)
        assert (await house.chat("a")).status_code == 200
        assert [note["pid"] for note in house.events("stop")][:1] == [first]
        assert house.starts() == ["a", "a"]


async def test_a_request_can_say_itself_how_long_its_model_stays(open_house: OpenHouse) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    async with open_house({"a": {"ttl_s": 0.3}, "b": {}}) as house:
        asked = {"model": "a", "messages": messages, "stream": False, "keep_alive": "10m"}
        assert (await house.http.post("/api/chat", json=asked)).status_code == 200
        with pytest.raises(TimeoutError):
            await house.until(lambda: house.events("stop"), 0.8)
        asked = {"model": "b", "messages": messages, "stream": False, "keep_alive": 0}
        assert (await house.http.post("/api/chat", json=asked)).status_code == 200
        await house.until(lambda: house.events("stop", "b"), 1.0)

"""Idle models: when they are stopped, and when not."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from fakes.flag_file import FlagFile
from system.running_gateway import RunningGateway, StartGateway, is_complete

pytestmark = pytest.mark.anyio

Flags = Callable[[str], FlagFile]

#: An engine notes that it is done after its last byte, at which the idle time begins.
LATE_S = 0.05


async def stayed(gateway: RunningGateway, since: str, model: str = "a") -> float:
    """Wait until it has stopped; how long after the last note of this kind that was, `LATE_S` added."""
    await gateway.until(lambda: len(gateway.events("stop", model)) == len(gateway.starts(model)))
    stop = gateway.events("stop", model)[-1]["time"]
    return float(stop - max(note["time"] for note in gateway.events(since, model) if note["time"] <= stop)) + LATE_S


async def test_a_model_is_stopped_when_unused_for_its_ttl(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"ttl_s": 0.6}}) as gateway:
        await gateway.chat("a")
        assert await stayed(gateway, since="done") >= 0.6


async def test_each_request_restarts_the_idle_time(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"ttl_s": 1.0}}) as gateway:
        await gateway.chat("a")
        first = gateway.events("done")[0]["time"]
        # Unless these restart it, it ends half of it, or less, after the last of them.
        while gateway.events("done")[-1]["time"] - first < 0.5:
            await gateway.chat("a")
        assert await stayed(gateway, since="done") >= 1.0


async def test_a_model_is_never_stopped_in_mid_answer(start_gateway: StartGateway, flags: Flags) -> None:
    last = flags("last")
    async with start_gateway({"a": {"ttl_s": 0.2, "script": {"last_when": last.path}}}) as gateway:
        async with anyio.create_task_group() as tasks, gateway.stream("a") as answer:
            tasks.start_soon(open_later, last)
            text = (await answer.aread()).decode()
        assert is_complete(text)
        await gateway.until(lambda: gateway.events("stop"))
        assert gateway.starts() == ["a"]


async def open_later(gate: FlagFile) -> None:
    """Not to wait for something: an answer takes several times the ttl."""
    await anyio.sleep(1.0)
    gate.set()


async def test_a_model_loaded_without_a_request_stays_for_its_ttl(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"ttl_s": 0.6}, "b": {}}) as gateway:
        assert (await gateway.action("load", model="a")).json() == {"model": "a", "state": "loaded"}
        assert await stayed(gateway, since="ready") >= 0.6
        # Without a ttl it stays.
        await gateway.action("load", model="b")
        with pytest.raises(TimeoutError):
            await gateway.until(lambda: gateway.events("stop", "b"), 0.8)


async def test_a_request_during_an_idle_stop_is_served_by_a_new_process(
    start_gateway: StartGateway, flags: Flags
) -> None:
    gone = flags("gone")
    profile = {"ttl_s": 0.2, "stop_grace_s": 60, "script": {"gone_when": gone.path}}
    async with start_gateway({"a": profile}) as gateway:
        await gateway.chat("a")
        first = gateway.events("start")[0]["pid"]
        await gateway.until(lambda: gateway.events("stop_requested"))
        answers: list[int] = []

        async def ask() -> None:
            answers.append((await gateway.chat("a")).status_code)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await gateway.until_counts(0, 1)
            gone.set()
        assert answers == [200]
        assert [note["pid"] for note in gateway.events("stop")][:1] == [first]
        assert gateway.starts()[:2] == ["a", "a"]


@pytest.mark.parametrize("long", ["10m", 600, -1])
async def test_keep_alive_replaces_the_idle_time(start_gateway: StartGateway, long: object) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    async with start_gateway({"a": {"ttl_s": 0.3}, "b": {}}) as gateway:
        asked = {"model": "a", "messages": messages, "stream": False, "keep_alive": long}
        assert (await gateway.http.post("/api/chat", json=asked)).status_code == 200
        with pytest.raises(TimeoutError):
            await gateway.until(lambda: gateway.events("stop"), 0.8)
        asked = {"model": "b", "messages": messages, "stream": False, "keep_alive": 0}
        assert (await gateway.http.post("/api/chat", json=asked)).status_code == 200
        # By itself it would stay for ever.
        await gateway.until(lambda: gateway.events("stop", "b"))

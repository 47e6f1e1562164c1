"""A client disconnect stops its engine, and frees its slot."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from fakes.flag_file import FlagFile
from system.running_gateway import RunningGateway, StartGateway

pytestmark = pytest.mark.anyio

SLOW = {"chunks": 50_000, "chunk_delay": 0.02}


async def serving(gateway: RunningGateway) -> int:
    return int((await gateway.status())["hosts"][0]["serving"])


async def test_a_client_disconnect_in_mid_stream_stops_the_engine(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": SLOW}}) as gateway:
        async with gateway.stream("a") as answer:
            lines = answer.aiter_lines()
            for _ in range(5):
                await anext(lines)
        await gateway.until(lambda: gateway.events("gone"))
        assert await serving(gateway) == 0


async def test_a_client_disconnect_before_a_whole_answer_stops_the_engine(
    start_gateway: StartGateway,
) -> None:
    async with start_gateway({"a": {"parallel": 2, "script": SLOW}}) as gateway, gateway.stream("a") as other:
        others = other.aiter_lines()
        await anext(others)
        with pytest.raises(httpx.ReadTimeout):
            await gateway.http.post("/v1/chat/completions", json={"model": "a", "messages": []}, timeout=0.3)
        # The other stream continues, and the engine sees the disconnect nevertheless.
        await gateway.until(lambda: gateway.events("gone"))
        assert await serving(gateway) == 1


async def test_a_disconnect_after_the_last_event_counts_as_a_complete_answer(
    start_gateway: StartGateway, flags: Callable[[str], FlagFile]
) -> None:
    closed = flags("closed").path
    profiles = {"a": {"script": {"close_when": closed}}, "b": {"script": {"last_when": closed}}}
    async with start_gateway(profiles) as gateway:
        for model, last in (("a", "[DONE]"), ("b", "word3")):
            async with gateway.stream(model) as answer:
                async for line in answer.aiter_lines():
                    if last in line:
                        break
            await gateway.until_counts(0, 0)
        history = (await gateway.http.get("/admin/history")).json()
    ends = {each["event"]["model"]: (each["event"]["outcome"], each["event"]["status"]) for each in history}
    assert ends == {"a": ("ok", 200), "b": ("client_disconnected", 499)}

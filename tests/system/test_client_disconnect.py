"""A client disconnect stops its engine, and frees its slot."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from fakes.flag_file import FlagFile
from system.running_gateway import StartGateway, first_token

pytestmark = pytest.mark.anyio

SLOW = {"chunks": 50_000, "chunk_delay": 0.02}


async def test_a_client_disconnect_in_mid_stream_stops_the_engine(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": SLOW}}) as gateway:
        async with gateway.stream("a") as answer:
            await first_token(answer)
        await gateway.until(lambda: gateway.events("gone"))
        await gateway.until_counts(0, 0)


async def test_a_client_disconnect_before_a_whole_answer_stops_the_engine(
    start_gateway: StartGateway,
) -> None:
    async with start_gateway({"a": {"parallel": 2, "script": SLOW}}) as gateway, gateway.stream("a") as other:
        await first_token(other)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gateway.chat, "a")
            await gateway.until(lambda: len(gateway.requests()) == 2)
            tasks.cancel_scope.cancel()
        # The other stream continues, and the engine sees the disconnect nevertheless.
        await gateway.until(lambda: gateway.events("gone"))
        await gateway.until_counts(1, 0)


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

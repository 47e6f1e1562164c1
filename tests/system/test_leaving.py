"""Leaving well: clients that go, engines that die, and what those who wait are told."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import anyio
import httpx
import pytest
from fakes.flag_file import FlagFile
from system.running_gateway import RunningGateway, StartGateway, data_events, first_token, is_complete

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
        # The other stream goes on, and the engine hears of the leaving all the same.
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
        told = (await gateway.http.get("/admin/history")).json()
    ends = {each["event"]["model"]: (each["event"]["outcome"], each["event"]["status"]) for each in told}
    assert ends == {"a": ("ok", 200), "b": ("client_disconnected", 499)}


async def test_an_engine_killed_in_mid_stream_ends_the_stream_with_an_error(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {**SLOW, "crash_at_chunk": 5}}}) as gateway:
        async with gateway.stream("a") as answer:
            text = (await answer.aread()).decode()
        events = data_events(text)
        assert events[-1]["error"]["code"] == "backend_broken"
        assert all(event["choices"][0]["finish_reason"] is None for event in events[:-1])


async def test_a_whole_answer_of_a_killed_engine_is_an_error(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {**SLOW, "crash_at_chunk": 5}}}) as gateway:
        answer = await gateway.chat("a")
        assert answer.status_code == 502
        assert answer.json()["error"]["code"] == "backend_broken"


@pytest.mark.parametrize("script", [{"break_at_chunk": 3}, {"end_at_chunk": 3}])
async def test_an_answer_without_its_end_is_never_complete(start_gateway: StartGateway, script: dict[str, int]) -> None:
    async with start_gateway({"a": {"script": {"chunks": 10, **script}}}) as gateway:
        async with gateway.stream("a") as answer:
            text = (await answer.aread()).decode()
        assert "error" in data_events(text)[-1]
        assert (await gateway.chat("a")).status_code == 502


async def test_an_engine_that_died_while_idle_is_started_again(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        await gateway.chat("a")
        pid = gateway.events("start")[0]["pid"]
        os.kill(pid, signal.SIGKILL)
        answer = await gateway.chat("a")
        assert answer.status_code == 200, answer.text
        assert gateway.starts() == ["a", "a"]


async def test_an_engines_error_response_passes_unchanged(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {"status": 400, "error": "scripted"}}}) as gateway:
        answer = await gateway.chat("a")
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "scripted"


async def test_an_unsupported_operation_returns_the_engines_own_error(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        answer = await gateway.http.post("/v1/embeddings", json={"model": "a", "input": "x"})
        assert answer.status_code == 501
        assert "does not support embeddings" in answer.json()["error"]["message"]
        asked = [note for note in gateway.events("request") if note["path"] == "/v1/embeddings"]
        assert len(asked) == 1


async def test_stopping_finishes_the_answer_in_progress(
    start_gateway: StartGateway, flags: Callable[[str], FlagFile]
) -> None:
    last = flags("last")

    async def finish() -> None:
        # Not to wait for something: by then who is cut off has been told.
        await anyio.sleep(0.5)
        last.set()

    async with start_gateway({"a": {"script": {"last_when": last.path}}}) as gateway:
        async with anyio.create_task_group() as tasks, gateway.stream("a") as answer:
            lines = await first_token(answer)
            gateway.app.stop()
            tasks.start_soon(finish)
            rest = [line async for line in lines]
        assert is_complete("\n".join(rest))
        with pytest.raises(httpx.ConnectError):
            await gateway.http.get("/healthz")


async def test_two_streams_run_at_once_with_two_slots(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"parallel": 2, "script": SLOW}}) as gateway, gateway.stream("a") as one:
        first = one.aiter_lines()
        await anext(first)
        with anyio.fail_after(20):
            async with gateway.stream("a") as two:
                second = two.aiter_lines()
                await anext(second)
                assert await serving(gateway) == 2

"""Engines that fail during an answer, while idle, or with an error response."""

from __future__ import annotations

import os
import signal

import pytest
from system.running_gateway import StartGateway, data_events

pytestmark = pytest.mark.anyio

SLOW = {"chunks": 50_000, "chunk_delay": 0.02}


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

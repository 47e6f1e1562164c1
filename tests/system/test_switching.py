"""Switching as clients see it: one process per model, one model at a time, no aborted answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import httpx
import pytest
from fakes.flag_file import FlagFile
from system.running_gateway import StartGateway, data_events, first_token, is_complete

pytestmark = pytest.mark.anyio

Flags = Callable[[str], FlagFile]


async def test_starts_a_cold_model_once_and_answers(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}, "b": {}}) as gateway:
        answer = await gateway.chat("a")
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"].strip() == "word0 word1 word2 word3 word4"
        assert gateway.starts() == ["a"]


async def test_requests_that_arrive_during_a_load_share_one_process(start_gateway: StartGateway, flags: Flags) -> None:
    ready = flags("ready")
    async with start_gateway({"a": {"script": {"ready_when": ready.path}}}) as gateway:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await gateway.chat("a"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await gateway.until(gateway.starts)
            for _ in range(5):
                tasks.start_soon(ask)
            await gateway.until_counts(0, 6)
            ready.set()
        assert [answer.status_code for answer in answers] == [200] * 6
        assert gateway.starts() == ["a"]


async def test_stops_the_old_model_before_the_new_one_starts(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}, "b": {}}) as gateway:
        await gateway.chat("a")
        await gateway.chat("b")
        order = [(note["event"], note["model"]) for note in gateway.events() if note["event"] in ("start", "stop")]
        assert order == [("start", "a"), ("stop", "a"), ("start", "b")]


async def test_a_stream_ends_by_itself_before_its_model_is_stopped(start_gateway: StartGateway, flags: Flags) -> None:
    last = flags("last")
    async with start_gateway({"a": {"script": {"last_when": last.path}}, "b": {}}) as gateway:
        async with anyio.create_task_group() as tasks, gateway.stream("a") as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            tasks.start_soon(gateway.chat, "b")
            await gateway.until_counts(1, 1)
            last.set()
            text = [line async for line in lines]
        assert is_complete("\n".join(text))
        assert gateway.starts() == ["a", "b"]


async def test_alternating_requests_cost_one_switch(start_gateway: StartGateway, flags: Flags) -> None:
    speak = flags("speak")
    async with start_gateway({"a": {"script": {"answer_when": speak.path}}, "b": {}}) as gateway:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gateway.chat, "a")
            await gateway.until_counts(1, 0)
            for model in "bababa":
                tasks.start_soon(gateway.chat, model)
            await gateway.until_counts(1, 6)
            speak.set()
        assert gateway.starts() == ["a", "b"]


async def test_a_request_for_another_model_waits_no_longer_than_patience(start_gateway: StartGateway) -> None:
    profiles = {"a": {"script": {"chunks": 3, "chunk_delay": 0.02}}, "b": {}}
    async with start_gateway(profiles, gateway={"switching": {"patience_s": 0.5}}) as gateway:
        await gateway.chat("a")
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(gateway.keep_asking, "a")
            await gateway.until_counts(1, 3)
            with anyio.fail_after(20):
                answer = await gateway.chat("b")
            tasks.cancel_scope.cancel()
        assert answer.status_code == 200


async def test_a_model_without_waiting_requests_is_not_loaded(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {"chunks": 2000, "chunk_delay": 0.02}}, "b": {}}) as gateway:
        async with gateway.stream("a") as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(gateway.chat, "b")
                await gateway.until_counts(1, 1)
                tasks.cancel_scope.cancel()
            await gateway.until_counts(1, 0)
        # The stream was left, too: `a` could be evicted now.
        await gateway.until_counts(0, 0)
        assert (await gateway.chat("a", max_tokens=1)).status_code == 200
        assert gateway.starts() == ["a"]


async def test_requests_beyond_the_queue_are_refused_with_a_realistic_retry_after(
    start_gateway: StartGateway, flags: Flags
) -> None:
    ready = flags("ready")
    profiles = {"a": {"script": {"ready_when": ready.path}}}
    async with start_gateway(profiles, gateway={"queue": {"max_waiting": 10}}) as gateway:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await gateway.chat("a"))

        async with anyio.create_task_group() as tasks:
            for _ in range(13):
                tasks.start_soon(ask)
            await gateway.until(lambda: len(answers) == 3)
            await gateway.until_counts(0, 10)
            ready.set()
        refused = answers[:3]
        assert [answer.status_code for answer in answers] == [429] * 3 + [200] * 10
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert refused[0].json()["error"]["code"] == "queue_full"
        assert (await gateway.status())["hosts"][0]["waiting"] == 0


async def test_the_access_log_has_the_status_that_the_client_received(
    start_gateway: StartGateway, flags: Flags
) -> None:
    ready = flags("ready")
    profiles = {"a": {"script": {"ready_when": ready.path}}}
    body = {"model": "a", "messages": [{"role": "user", "content": "Hello"}]}
    async with (
        start_gateway(profiles, gateway={"queue": {"max_waiting": 1}}) as gateway,
        anyio.create_task_group() as tasks,
        gateway.http.stream("GET", "/events") as events,
    ):
        lines = events.aiter_lines()
        await anext(lines)
        tasks.start_soon(gateway.chat, "a")
        await gateway.until_counts(0, 1)
        refused = await gateway.http.post("/api/chat", json=body)
        noted = await _noted(lines, "queue_full")
        ready.set()
    assert refused.status_code == 503
    assert noted["status"] == 503


async def _noted(lines: AsyncIterator[str], code: str) -> Any:
    """The event of a request that ended with this error."""
    async for line in lines:
        if f'"code":"{code}"' in line:
            return json.loads(line.removeprefix("data: "))
    raise AssertionError("the events ended")


async def test_progress_is_shown_and_then_the_answer(start_gateway: StartGateway, flags: Flags) -> None:
    ready = flags("ready")
    settings = {"switching": {"progress_after_s": 0.05, "progress_every_s": 0.05}}
    async with start_gateway({"a": {"script": {"ready_when": ready.path}}}, gateway=settings) as gateway:
        async with gateway.stream("a") as answer:
            text = ""
            async for part in answer.aiter_text():
                text += part
                if "x_hostler" in text:
                    ready.set()
        events = data_events(text)
        shown = [event for event in events if "x_hostler" in event]
        assert shown
        assert {event["x_hostler"]["model"] for event in shown} == {"a"}
        words = "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
        assert words.split() == ["word0", "word1", "word2", "word3", "word4"]
        assert "data: [DONE]" in text


async def test_a_failed_load_after_progress_is_an_error_in_the_stream(
    start_gateway: StartGateway, flags: Flags
) -> None:
    die = flags("die")
    settings = {"switching": {"progress_after_s": 0.05, "progress_every_s": 0.05}}
    script = {"never_ready": True, "exit_code": 1, "exit_when": die.path, "stderr": "E out of luck\n"}
    async with start_gateway({"a": {"script": script}}, gateway=settings) as gateway:
        async with gateway.stream("a") as answer:
            assert answer.status_code == 200
            die.set()
            text = (await answer.aread()).decode()
        assert data_events(text)[-1]["error"]["code"] == "model_not_available"


async def test_a_failed_load_is_explained_with_the_engines_last_output(start_gateway: StartGateway) -> None:
    script = {"exit_code": 1, "stderr": "E out of luck\n"}
    async with start_gateway({"a": {"script": script}}) as gateway:
        answer = await gateway.chat("a")
        assert answer.status_code == 503
        assert "out of luck" in answer.json()["error"]["message"]


async def test_a_request_without_a_model_goes_to_the_active_one(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}, "b": {}}) as gateway:
        unnamed = await gateway.chat(None)
        assert unnamed.status_code == 400
        assert gateway.starts() == []
        await gateway.chat("b")
        answer = await gateway.chat(None)
        assert answer.json()["model"] == "b"


async def test_the_active_model_comes_before_the_default_one(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"default": True}, "b": {}}) as gateway:
        assert (await gateway.chat(None)).json()["model"] == "a"
        await gateway.chat("b")
        assert (await gateway.chat(None)).json()["model"] == "b"
        assert gateway.starts() == ["a", "b"]


async def test_aliases_reach_their_profile(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"aliases": ["org/small"]}}) as gateway:
        for name in ("org/small", "org/small:latest", "a:latest"):
            assert (await gateway.chat(name)).json()["model"] == "a"
        assert (await gateway.http.get("/v1/models/org/small")).json()["id"] == "org/small"


async def test_model_info_requests_start_nothing(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"default": True}}) as gateway:
        for path in ("/v1/models", "/models", "/v1/models/a", "/healthz", "/readyz", "/admin/status", "/"):
            assert (await gateway.http.get(path)).status_code == 200, path
        assert gateway.starts() == []


async def test_two_streams_run_at_once_with_two_slots(start_gateway: StartGateway) -> None:
    async with (
        start_gateway({"a": {"parallel": 2, "script": {"chunks": 50_000, "chunk_delay": 0.02}}}) as gateway,
        gateway.stream("a") as one,
    ):
        await first_token(one)
        with anyio.fail_after(20):
            async with gateway.stream("a") as two:
                await first_token(two)
                assert await gateway.counts() == (2, 0)

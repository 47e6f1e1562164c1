"""Switching, seen from a client: one process a model, one model at a time, no answer cut off."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import httpx
import pytest
from fakes.gate import Gate
from system.house import OpenHouse, data_events, is_whole

pytestmark = pytest.mark.anyio

Gates = Callable[[str], Gate]


async def test_starts_a_cold_model_once_and_answers(open_house: OpenHouse) -> None:
    async with open_house({"a": {}, "b": {}}) as house:
        answer = await house.chat("a")
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"].strip() == "word0 word1 word2 word3 word4"
        assert house.starts() == ["a"]


async def test_requests_that_arrive_during_a_load_share_one_process(open_house: OpenHouse, gates: Gates) -> None:
    ready = gates("ready")
    async with open_house({"a": {"script": {"ready_when": ready.path}}}) as house:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await house.chat("a"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await house.until(house.starts)
            for _ in range(5):
                tasks.start_soon(ask)
            await house.until_counts(0, 6)
            ready.open()
        assert [answer.status_code for answer in answers] == [200] * 6
        assert house.starts() == ["a"]


async def test_stops_the_old_model_before_the_new_one_starts(open_house: OpenHouse) -> None:
    async with open_house({"a": {}, "b": {}}) as house:
        await house.chat("a")
        await house.chat("b")
        order = [(note["event"], note["model"]) for note in house.events() if note["event"] in ("start", "stop")]
        assert order == [("start", "a"), ("stop", "a"), ("start", "b")]


async def test_a_stream_ends_by_itself_before_its_model_is_stopped(open_house: OpenHouse, gates: Gates) -> None:
    last = gates("last")
    async with open_house({"a": {"script": {"last_when": last.path}}, "b": {}}) as house:
        async with anyio.create_task_group() as tasks, house.stream("a") as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            tasks.start_soon(house.chat, "b")
            await house.until_counts(1, 1)
            last.open()
            text = [line async for line in lines]
        assert is_whole("\n".join(text))
        assert house.starts() == ["a", "b"]


async def test_alternating_requests_cost_one_switch(open_house: OpenHouse, gates: Gates) -> None:
    speak = gates("speak")
    async with open_house({"a": {"script": {"answer_when": speak.path}}, "b": {}}) as house:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.chat, "a")
            await house.until_counts(1, 0)
            for model in "bababa":
                tasks.start_soon(house.chat, model)
            await house.until_counts(1, 6)
            speak.open()
        assert house.starts() == ["a", "b"]


async def test_a_request_for_another_model_waits_no_longer_than_patience(open_house: OpenHouse) -> None:
    profiles = {"a": {"script": {"chunks": 3, "chunk_delay": 0.02}}, "b": {}}
    async with open_house(profiles, gateway={"switching": {"patience_s": 0.5}}) as house:
        await house.chat("a")
        async with anyio.create_task_group() as tasks:

            async def keep_asking() -> None:
                while True:
                    await house.chat("a")

            for _ in range(4):
                tasks.start_soon(keep_asking)
            await house.until_counts(1, 3)
            with anyio.fail_after(20):
                answer = await house.chat("b")
            tasks.cancel_scope.cancel()
        assert answer.status_code == 200


async def test_a_model_without_waiting_requests_is_not_loaded(open_house: OpenHouse) -> None:
    async with open_house({"a": {"script": {"chunks": 2000, "chunk_delay": 0.02}}, "b": {}}) as house:
        async with house.stream("a") as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(house.chat, "b")
                await house.until_counts(1, 1)
                tasks.cancel_scope.cancel()
            await house.until_counts(1, 0)
        # The stream has been left, too: `a` could go now, if anybody wanted it to.
        await house.until_counts(0, 0)
        assert (await house.chat("a", max_tokens=1)).status_code == 200
        assert house.starts() == ["a"]


async def test_requests_beyond_the_queue_are_refused_with_a_realistic_retry_after(
    open_house: OpenHouse, gates: Gates
) -> None:
    ready = gates("ready")
    profiles = {"a": {"script": {"ready_when": ready.path}}}
    async with open_house(profiles, gateway={"queue": {"max_waiting": 10}}) as house:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await house.chat("a"))

        async with anyio.create_task_group() as tasks:
            for _ in range(13):
                tasks.start_soon(ask)
            await house.until(lambda: len(answers) == 3)
            await house.until_counts(0, 10)
            ready.open()
        refused = answers[:3]
        assert [answer.status_code for answer in answers] == [429] * 3 + [200] * 10
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert refused[0].json()["error"]["code"] == "queue_full"
        assert (await house.status())["hosts"][0]["waiting"] == 0


async def test_the_access_log_has_the_status_that_the_client_received(open_house: OpenHouse, gates: Gates) -> None:
    ready = gates("ready")
    profiles = {"a": {"script": {"ready_when": ready.path}}}
    body = {"model": "a", "messages": [{"role": "user", "content": "Hello"}]}
    async with (
        open_house(profiles, gateway={"queue": {"max_waiting": 1}}) as house,
        anyio.create_task_group() as tasks,
        house.http.stream("GET", "/events") as events,
    ):
        lines = events.aiter_lines()
        await anext(lines)
        tasks.start_soon(house.chat, "a")
        await house.until_counts(0, 1)
        told = await house.http.post("/api/chat", json=body)
        noted = await _noted(lines, "queue_full")
        ready.open()
    assert told.status_code == 503
    assert noted["status"] == 503


async def _noted(lines: AsyncIterator[str], code: str) -> Any:
    """The event of a request that ended with this error."""
    async for line in lines:
        if f'"code":"{code}"' in line:
            return json.loads(line.removeprefix("data: "))
    raise AssertionError("the events ended")


async def test_progress_is_shown_and_then_the_answer(open_house: OpenHouse, gates: Gates) -> None:
    ready = gates("ready")
    settings = {"switching": {"progress_after_s": 0.05, "progress_every_s": 0.05}}
    async with open_house({"a": {"script": {"ready_when": ready.path}}}, gateway=settings) as house:
        async with house.stream("a") as answer:
            text = ""
            async for part in answer.aiter_text():
                text += part
                if "x_hostler" in text:
                    ready.open()
        events = data_events(text)
        shown = [event for event in events if "x_hostler" in event]
        assert shown
        assert {event["x_hostler"]["model"] for event in shown} == {"a"}
        words = "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
        assert words.split() == ["word0", "word1", "word2", "word3", "word4"]
        assert "data: [DONE]" in text


async def test_a_failed_load_after_progress_is_an_error_in_the_stream(open_house: OpenHouse, gates: Gates) -> None:
    die = gates("die")
    settings = {"switching": {"progress_after_s": 0.05, "progress_every_s": 0.05}}
    script = {"never_ready": True, "exit_code": 1, "exit_when": die.path, "stderr": "E out of luck\n"}
    async with open_house({"a": {"script": script}}, gateway=settings) as house:
        async with house.stream("a") as answer:
            assert answer.status_code == 200
            die.open()
            text = (await answer.aread()).decode()
        assert data_events(text)[-1]["error"]["code"] == "model_not_available"


async def test_a_failed_load_is_explained_with_the_engines_last_output(open_house: OpenHouse) -> None:
    script = {"exit_code": 1, "stderr": "E out of luck\n"}
    async with open_house({"a": {"script": script}}) as house:
        answer = await house.chat("a")
        assert answer.status_code == 503
        assert "out of luck" in answer.json()["error"]["message"]


async def test_a_request_without_a_model_goes_to_the_active_one(open_house: OpenHouse) -> None:
    async with open_house({"a": {}, "b": {}}) as house:
        nobody = await house.chat(None)
        assert nobody.status_code == 400
        assert house.starts() == []
        await house.chat("b")
        answer = await house.chat(None)
        assert answer.json()["model"] == "b"


async def test_the_active_model_comes_before_the_default_one(open_house: OpenHouse) -> None:
    async with open_house({"a": {"default": True}, "b": {}}) as house:
        assert (await house.chat(None)).json()["model"] == "a"
        await house.chat("b")
        assert (await house.chat(None)).json()["model"] == "b"
        assert house.starts() == ["a", "b"]


async def test_aliases_reach_their_profile(open_house: OpenHouse) -> None:
    async with open_house({"a": {"aliases": ["org/small"]}}) as house:
        for name in ("org/small", "org/small:latest", "a:latest"):
            assert (await house.chat(name)).json()["model"] == "a"
        assert (await house.http.get("/v1/models/org/small")).json()["id"] == "org/small"


async def test_model_info_requests_start_nothing(open_house: OpenHouse) -> None:
    async with open_house({"a": {"default": True}}) as house:
        for path in ("/v1/models", "/models", "/v1/models/a", "/healthz", "/readyz", "/admin/status", "/"):
            assert (await house.http.get(path)).status_code == 200, path
        assert house.starts() == []

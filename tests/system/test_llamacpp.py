"""llama.cpp's and LM Studio's clients against the whole product: which engine answers, and what never starts one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from system.running_gateway import StartGateway, data_events

pytestmark = pytest.mark.anyio


async def test_model_info_requests_start_no_engine(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"default": True}, "b": {}}) as gateway:
        for path in (
            "/health", "/v1/health", "/props", "/v1/props", "/props?model=b", "/slots", "/slots?model=b", "/version",
            "/models", "/api/v1/models", "/api/v0/models", "/api/v0/models/a",
        ):  # fmt: skip
            assert (await gateway.http.get(path)).status_code == 200, path
        for path in ("/lora-adapters", "/lora-adapters?model=a", "/favicon.ico", "/v1/unknown", "/x?model=a"):
            assert (await gateway.http.get(path)).status_code in (404, 503), path
        load = await gateway.http.post("/api/v1/models/load", json={"model": "a", "context_length": 64000})
        assert load.status_code == 200
        assert (await gateway.http.post("/unknown", json={"x": 1})).status_code == 503
        assert gateway.starts() == []


async def test_watchers_of_the_models_receive_every_change(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}, "b": {"script": {"exit_code": 1}}}) as gateway:
        async with gateway.http.stream("GET", "/models/sse") as answer:
            assert answer.headers["content-type"] == "text/event-stream"
            lines = answer.aiter_lines()

            async def until(*wanted: str) -> list[str]:
                """The states of the model that are sent, until the last of these."""
                model, last = wanted
                states_seen: list[str] = []
                async for line in lines:
                    event = json.loads(line[5:]) if line.startswith("data:") else {"model": ""}
                    if event["model"] == model:
                        state = event["data"]["status"] + " failed" * event["data"].get("exit_code", 0)
                        states_seen += [state] if states_seen[-1:] != [state] else []
                        if state == last:
                            break
                return states_seen

            assert await until("b", "unloaded") == ["unloaded"]
            assert (await gateway.http.post("/models/load", json={"model": "a"})).json() == {"success": True}
            assert await until("a", "loaded") == ["loading", "loaded"]
            assert (await gateway.http.post("/models/unload", json={"model": "a"})).json() == {"success": True}
            assert await until("a", "unloaded") == ["unloaded"]
            await gateway.chat("b")
            assert (await until("b", "unloaded failed"))[0] == "loading"
        assert (await gateway.http.head("/models/sse")).status_code == 200


async def test_watchers_of_the_models_do_not_delay_shutdown(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway, gateway.http.stream("GET", "/models/sse") as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        gateway.app.stop()
        assert [line async for line in lines if line] == []


async def test_a_whole_native_completion_is_requested_as_a_stream(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        answer = (await gateway.http.post("/completion", json={"prompt": "x", "model": "a"})).json()
        assert (answer["content"], answer["stop"]) == ("word0 word1 word2 word3 word4 ", True)
        sent = json.loads(gateway.events("request")[-1]["body"])
        assert sent == {"prompt": "x", "model": "a", "stream": True}


async def test_a_native_stream_is_the_engines_own(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        body: dict[str, Any] = {"prompt": "x", "model": "a", "stream": True}
        events = data_events((await gateway.http.post("/completion", json=body)).text)
        assert [event["stop"] for event in events] == [False] * 5 + [True]


async def test_a_native_stream_that_breaks_ends_with_an_error(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {"end_at_chunk": 3}}}) as gateway:
        body: dict[str, Any] = {"prompt": "x", "model": "a", "stream": True}
        events = data_events((await gateway.http.post("/completion", json=body)).text)
        assert "before it was complete" in events[-1]["error"]["message"]


async def test_a_request_without_a_model_goes_to_the_active_engine(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}, "b": {}}) as gateway:
        await gateway.chat("b")
        answer = await gateway.http.post("/tokenize", json={"content": "one two"})
        assert answer.json() == {"tokens": [0, 1]}
        assert answer.headers["x-hostler-model"] == "b"
        assert (await gateway.http.get("/props")).json()["model_alias"] == "b"
        assert gateway.starts() == ["b"]


async def test_an_unknown_path_goes_to_the_engine_of_its_model(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        answer = await gateway.http.post("/v2/tokenize?x=1", json={"model": "a", "content": "one two"})
        assert answer.json() == {"tokens": [0, 1]}
        assert gateway.events("request")[-1]["path"] == "/v2/tokenize?x=1"
        assert (await gateway.http.get("/unknown")).status_code == 404
        assert gateway.events("request")[-1]["path"] == "/unknown"


async def test_an_engines_slot_routes_are_not_exposed(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        await gateway.chat("a")
        before = len(gateway.events("request"))
        for path in ("/slots/0?action=erase", "/x/slots/0?action=erase", "/x/%2e%2e/slots/0?action=erase"):
            assert (await gateway.http.post(path, json={"filename": "x"})).status_code in (404, 501), path
        assert len(gateway.events("request")) == before


async def test_models_are_loaded_and_unloaded_on_request(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}) as gateway:
        for path, state in (("/models/load", "loaded"), ("/models/unload", "unloaded")):
            assert (await gateway.http.post(path, json={"model": "a"})).json() == {"success": True}
            (entry,) = (await gateway.http.get("/models")).json()["data"]
            assert entry["status"] == {"value": state}
            again = await gateway.http.post(path, json={"model": "a"})
            assert (again.status_code, again.json()["error"]["code"]) == (400, 400)
        assert (await gateway.http.post("/models/load", json={"model": "x"})).status_code == 404
        assert gateway.starts() == ["a"]


async def test_lm_studios_own_chat_includes_its_statistics(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"context": 8192, "script": {"reasoning": 1}}}) as gateway:
        asked = {"model": "a", "input": "Hello", "system_prompt": "Be brief."}
        answer = (await gateway.http.post("/api/v1/chat", json=asked)).json()
        words = "word1 word2 word3 word4 "
        assert [(item["type"], item["content"]) for item in answer["output"]] == [
            ("reasoning", "word0 "), ("message", words),
        ]  # fmt: skip
        assert answer["stats"]["total_output_tokens"] == 5
        events = data_events((await gateway.http.post("/api/v1/chat", json={**asked, "stream": True})).text)
        assert (events[0]["type"], events[-1]["type"]) == ("chat.start", "chat.end")
        assert events[-1]["result"]["output"] == answer["output"]
        older = {"model": "a", "messages": [{"role": "user", "content": "Hello"}]}
        whole = (await gateway.http.post("/api/v0/chat/completions", json=older)).json()
        assert (whole["choices"][0]["message"]["content"], whole["model_info"]["context_length"]) == (words, 8192)
        streamed = await gateway.http.post("/api/v0/chat/completions", json={**older, "stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert data_events(streamed.text)[-1]["stats"]["stop_reason"] == "eosFound"

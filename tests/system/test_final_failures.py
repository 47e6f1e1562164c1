"""Final failures and those that are worth a retry: each protocol's clients can distinguish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import anyio
import httpx
import openai
import pytest
from fakes.scripted_server import ScriptedAnswer, start_scripted_server
from system.fallback_chain import start_chain
from system.running_gateway import StartGateway, write_keys

pytestmark = pytest.mark.anyio

TURNS = [{"role": "user", "content": "Hello"}]
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("/v1/chat/completions", {"messages": TURNS}),
    "completions": ("/v1/completions", {"prompt": "Hello"}),
    "responses": ("/v1/responses", {"input": "Hello"}),
    "anthropic": ("/v1/messages", {"messages": TURNS, "max_tokens": 9}),
    "ollama": ("/api/chat", {"messages": TURNS}),
    "llamacpp": ("/completion", {"prompt": "Hello"}),
    "lmstudio": ("/api/v1/chat", {"input": "Hello"}),
}
#: The status of a model that cannot start, and the type that its protocol has for what is final.
FINAL = {
    "openai": (503, "server_error"),
    "completions": (503, "server_error"),
    "responses": (400, "server_error"),
    "anthropic": (503, "api_error"),
    "ollama": (500, None),
    "llamacpp": (503, "unavailable_error"),
    "lmstudio": (503, "internal_error"),
}
SOON = {"switching": {"progress_after_s": 0, "progress_every_s": 0.05}}

in_each_protocol = pytest.mark.parametrize("protocol", REQUESTS)
streamed_or_whole = pytest.mark.parametrize("stream", [False, True])


def request(protocol: str, stream: bool, model: str = "a") -> tuple[str, dict[str, Any]]:
    path, body = REQUESTS[protocol]
    return path, {"model": model, "stream": stream, **body}


def error_of(body: Any) -> tuple[str, str | None]:
    error = body["error"]
    return (error, None) if isinstance(error, str) else (error["message"], error["type"])


@in_each_protocol
@streamed_or_whole
async def test_a_model_that_cannot_start_is_final_with_the_reason_of_the_log(
    start_gateway: StartGateway, protocol: str, stream: bool
) -> None:
    script = {"exit_code": 7, "stderr": "unsupported device\n"}
    async with start_gateway({"a": {"script": script}}, gateway={"switching": {"progress": "off"}}) as gateway:
        path, body = request(protocol, stream)
        for _ in range(4):  # the last ones are refused without another start
            answer = await gateway.http.post(path, json=body)
            message, kind = error_of(answer.json())
            assert (answer.status_code, kind) == FINAL[protocol]
            assert (answer.headers.get("x-should-retry"), answer.headers.get("retry-after")) == ("false", None)
            assert "exit code 7" in message and "unsupported device" in message


async def test_a_failure_after_progress_is_final_inside_the_stream(start_gateway: StartGateway, tmp_path: Path) -> None:
    script = {"exit_code": 7, "exit_when": str(tmp_path / "exit"), "ready_when": str(tmp_path / "never")}
    async with start_gateway({"a": {"script": script}}, gateway=SOON) as gateway:
        texts: dict[str, str] = {}
        opened: list[str] = []

        async def ask(protocol: str) -> None:
            path, body = request(protocol, True)
            async with gateway.http.stream("POST", path, json=body) as answer:
                opened.append(protocol)
                assert answer.status_code == 200
                texts[protocol] = (await answer.aread()).decode()

        async with anyio.create_task_group() as tasks:
            for protocol in ("openai", "anthropic", "responses"):
                tasks.start_soon(ask, protocol)
            await gateway.until(lambda: len(opened) == 3)
            (tmp_path / "exit").touch()
    events = {
        protocol: [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        for protocol, text in texts.items()
    }
    assert events["anthropic"][-1]["error"]["type"] == "api_error"
    assert events["openai"][-1]["error"]["type"] == "server_error"
    failed, error = events["responses"][-2:]
    assert (error["type"], failed["type"], failed["response"]["status"]) == ("error", "response.failed", "failed")
    assert failed["response"]["error"]["code"] == "invalid_prompt"
    for text in texts.values():
        assert "exit code 7" in text


async def test_the_official_libraries_do_not_try_again(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {"exit_code": 7}}}) as gateway:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x") as client:
            with pytest.raises(openai.APIStatusError, match="exit code 7"):
                await client.chat.completions.create(model="a", messages=[{"role": "user", "content": "Hello"}])
        assert len(gateway.starts()) == 1
        async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="x") as claude:
            with pytest.raises(anthropic.APIStatusError, match="exit code 7"):
                await claude.messages.create(model="a", max_tokens=9, messages=[{"role": "user", "content": "Hello"}])
        assert len(gateway.starts()) == 2


@in_each_protocol
async def test_a_wrong_key_is_final(start_gateway: StartGateway, tmp_path: Path, protocol: str) -> None:
    file, _ = write_keys(tmp_path, known=0)
    async with start_gateway({"a": {}}, gateway={"api_keys_file": file}) as gateway:
        path, body = request(protocol, True)
        answer = await gateway.http.post(path, json=body, headers={"Authorization": "Bearer hk_wrong"})
        assert answer.status_code == 401
        assert (answer.headers.get("x-should-retry"), answer.headers.get("retry-after")) == ("false", None)


@in_each_protocol
async def test_a_key_that_the_backend_rejects_is_final_now_and_while_its_circuit_is_open(
    tmp_path: Path, protocol: str
) -> None:
    async with start_scripted_server() as server:
        server.answer = ScriptedAnswer(error=(401, "no"))
        backend = {"kind": "openai", "url": server.url, "models": {"a": "there"}}
        async with start_chain(tmp_path, {"cloud": backend}) as chain:
            path, body = request(protocol, True)
            for _ in range(2):
                answer = await chain.http.post(path, json=body)
                message, kind = error_of(answer.json())
                assert (answer.status_code, kind) == FINAL[protocol]
                assert (answer.headers.get("x-should-retry"), answer.headers.get("retry-after")) == ("false", None)
                assert "cloud" in message and "rejected the API key" in message


@in_each_protocol
async def test_a_profile_without_its_file_is_final_at_once(
    start_gateway: StartGateway, tmp_path: Path, protocol: str
) -> None:
    profiles = {"a": {"model": str(tmp_path / "missing.gguf")}}
    async with start_gateway(profiles) as gateway:
        path, body = request(protocol, True)
        answer = await gateway.http.post(path, json=body)
        message, kind = error_of(answer.json())
        assert (answer.status_code, kind) == FINAL[protocol]
        assert (answer.headers.get("x-should-retry"), answer.headers.get("retry-after")) == ("false", None)
        assert "its file is missing" in message
        assert gateway.starts() == []


async def test_a_broken_profile_keeps_its_reason_beside_other_backends(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with start_scripted_server() as server:
        server.answer = ScriptedAnswer(error=(401, "no"))
        cloud = {"cloud": {"kind": "openai", "url": server.url, "models": {"a": "there"}}}
        async with start_gateway({"a": {"script": {"exit_code": 7}}}, backends=cloud) as gateway:
            answer = await gateway.chat("a")
        message = answer.json()["error"]["message"]
        assert "exit code 7" in message and "rejected the API key" in message
        assert answer.headers["x-should-retry"] == "false" and "retry-after" not in answer.headers


@in_each_protocol
async def test_a_backend_that_is_down_for_a_moment_says_when_to_try_again(tmp_path: Path, protocol: str) -> None:
    async with start_scripted_server() as server:
        server.answer = ScriptedAnswer(error=(500, "no"))
        backend = {"kind": "openai", "url": server.url, "local": False, "models": {"a": "there"}}
        async with start_chain(tmp_path, {"cloud": backend}) as chain:
            path, body = request(protocol, True)
            answer = await chain.http.post(path, json=body)
            assert answer.status_code in (500, 502, 503)
            assert "x-should-retry" not in answer.headers and int(answer.headers["retry-after"]) >= 1


async def test_a_gateway_that_stops_says_when_to_try_again(start_gateway: StartGateway, tmp_path: Path) -> None:
    queue = {"queue": {"max_waiting": len(REQUESTS)}}
    async with start_gateway({"a": {"script": {"ready_when": str(tmp_path / "never")}}}, gateway=queue) as gateway:
        answers: dict[str, httpx.Response] = {}

        async def ask(protocol: str) -> None:
            path, body = request(protocol, False)
            answers[protocol] = await gateway.http.post(path, json=body)

        async with anyio.create_task_group() as tasks:
            for protocol in REQUESTS:
                tasks.start_soon(ask, protocol)
            await gateway.until_counts(0, len(REQUESTS))
            gateway.app.stop()
    for protocol, answer in answers.items():
        assert answer.status_code == 503, (protocol, answer.text)
        assert "x-should-retry" not in answer.headers and int(answer.headers["retry-after"]) >= 1


@in_each_protocol
@pytest.mark.parametrize("in_stream", [False, True], ids=["status", "event"])
async def test_a_used_up_quota_is_final_and_opens_the_circuit(tmp_path: Path, protocol: str, in_stream: bool) -> None:
    quota = {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"}
    body = json.dumps({"error": quota}).encode()
    prepared = (200, "text/event-stream", b"data: " + body + b"\n\n") if in_stream else (429, "application/json", body)
    async with start_scripted_server() as server:
        backend = {"kind": "openai", "url": server.url, "local": False, "models": {"a": "there"}}
        async with start_chain(tmp_path, {"cloud": backend}) as chain:
            server.prepared = [prepared] * 2
            path, asked = request(protocol, in_stream)
            for _ in range(2):
                answer = await chain.http.post(path, json=asked)
                assert answer.headers["x-should-retry"] == "false", answer.text
                assert "its account has no credit" in error_of(answer.json())[0]
            assert len(server.requests) == 1

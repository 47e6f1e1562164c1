"""Every client's protocol meets every backend's: a chat, a prompt, embeddings and errors are translated.

docs/compatibility.md lists what a protocol cannot express.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.scripted_server import VECTORS, ScriptedAnswer, ScriptedServer, start_scripted_server
from system.fallback_chain import start_chain
from system.protocol_clients import CHATS, CONVERSATION, PROMPTS, expected, received
from system.running_gateway import data_events

pytestmark = pytest.mark.anyio

BACKENDS = ("llamacpp", "openai", "ollama", "anthropic")
CALLS = (("call_1", "weather", '{"city": "Zürich"}'), ("call_2", "now", "{}"))
ANSWERS = {
    "plain": ScriptedAnswer(),
    "thoughtful": ScriptedAnswer(thoughts=("Hm, ", "Zürich?")),
    "calling": ScriptedAnswer(calls=CALLS, finish="tool_calls"),
    "calling only": ScriptedAnswer(words=(), thoughts=("Look.",), calls=CALLS[:1], finish="tool_calls"),
    "cut": ScriptedAnswer(finish="length"),
}
TEXT_ONLY = ("plain", "cut")

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_chat = pytest.mark.parametrize("client", CHATS)
each_mode = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


@asynccontextmanager
async def backend_of_kind(tmp_path: Path, kind: str) -> AsyncIterator[tuple[ScriptedServer, httpx.AsyncClient]]:
    """A gateway in front of a scripted backend of this kind, which calls the model `m` `there`."""
    async with start_scripted_server() as server:
        backend = {"kind": kind, "url": server.url, "models": {"m": "there"}}
        async with start_chain(tmp_path, {"there": backend}) as chain:
            yield server, chain.http


@each_chat
@each_backend
@each_mode
async def test_a_chat_is_translated_in_both_directions(tmp_path: Path, client: str, backend: str, stream: bool) -> None:
    make_request, read_answer = CHATS[client]
    path, body = make_request(stream)
    async with backend_of_kind(tmp_path, backend) as (server, http):
        for name, script in ANSWERS.items():
            server.answer = script
            answer = await http.post(path, json={"model": "m", **body})
            assert answer.status_code == 200, answer.text
            assert read_answer(answer, stream) == expected(script), name
            assert received(*server.requests[-1]) == CONVERSATION


@each_mode
async def test_invalid_tool_calls_do_not_open_the_circuit(tmp_path: Path, stream: bool) -> None:
    path, body = CHATS["ollama"][0](stream)
    async with backend_of_kind(tmp_path, "openai") as (server, http):
        server.answer = ScriptedAnswer(words=(), calls=(("call_1", "weather", '{"city": "Zü'),), finish="length")
        for _ in range(5):
            answer = await http.post(path, json={"model": "m", **body})
            assert answer.status_code == 500
            assert 'invalid tool call arguments for "weather"' in answer.json()["error"]
        assert len(server.requests) == 5
        server.answer = ScriptedAnswer()
        assert (await http.post(path, json={"model": "m", **body})).status_code == 200


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/v1/messages"])
async def test_a_plain_server_receives_only_parameters_that_openai_accepts(tmp_path: Path, path: str) -> None:
    question: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "prompt": "Once", "raw": True}
    async with backend_of_kind(tmp_path, "openai") as (server, http):
        await http.post(path, json={"model": "m", "max_tokens": 9, **question})
    ((_, body),) = server.requests
    known = {"model", "messages", "prompt", "temperature", "top_p", "max_tokens", "stream", "stream_options"}
    assert set(body) <= known


async def test_anthropic_does_not_receive_the_defaults_of_ollamas_clients(tmp_path: Path) -> None:
    question = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    async with backend_of_kind(tmp_path, "anthropic") as (server, http):
        await http.post("/api/chat", json=question)
    ((_, body),) = server.requests
    assert set(body) == {"model", "messages", "max_tokens", "stream"}


async def test_a_plain_server_receives_sampling_options_that_the_client_set(tmp_path: Path) -> None:
    options = {"top_k": 5, "repeat_penalty": 1.5}
    messages = [{"role": "user", "content": "Hi"}]
    async with backend_of_kind(tmp_path, "openai") as (server, http):
        await http.post("/api/chat", json={"model": "m", "messages": messages, "options": options})
    ((_, body),) = server.requests
    assert (body["top_k"], body["repetition_penalty"]) == (5, 1.5)


@pytest.mark.parametrize("client", PROMPTS)
@pytest.mark.parametrize("backend", BACKENDS[:3])
@each_mode
async def test_a_text_completion_is_translated_without_a_chat_template(
    tmp_path: Path, client: str, backend: str, stream: bool
) -> None:
    if client == backend:
        return  # this engine's own form is its own business
    make_request, read_answer = PROMPTS[client]
    path, body = make_request(stream)
    async with backend_of_kind(tmp_path, backend) as (server, http):
        for name in TEXT_ONLY:
            server.answer = ANSWERS[name]
            answer = await http.post(path, json={"model": "m", **body})
            assert answer.status_code == 200, answer.text
            assert read_answer(answer, stream) == expected(server.answer), name


@pytest.mark.parametrize(("path", "key"), [("/v1/embeddings", "data"), ("/api/embed", "embeddings")])
@pytest.mark.parametrize("backend", BACKENDS[:3])
async def test_embeddings_are_translated(tmp_path: Path, path: str, key: str, backend: str) -> None:
    async with backend_of_kind(tmp_path, backend) as (server, http):
        answer = (await http.post(path, json={"model": "m", "input": ["one", "two"]})).json()
        assert server.requests[-1][1]["input"] == ["one", "two"]
    found = [each["embedding"] if isinstance(each, dict) else each for each in answer[key]]
    assert found == [pytest.approx(vector) for vector in VECTORS]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank", "/v1/rerank/"])
@pytest.mark.parametrize("backend", ["llamacpp", "openai"])
async def test_reranking_is_translated(tmp_path: Path, path: str, backend: str) -> None:
    async with backend_of_kind(tmp_path, backend) as (server, http):
        asked: dict[str, Any] = {"model": "m", "query": "q", "documents": ["one", "two"], "top_n": 1}
        plain = (await http.post(path, json=asked)).json()
        assert plain["results"] == [{"index": 1, "relevance_score": 1.0}]
        objects = {**asked, "documents": [{"text": "one"}, {"text": "two"}], "return_documents": True}
        answer = await http.post(path, json=objects)
        assert answer.json()["results"] == [{"index": 1, "relevance_score": 1.0, "document": {"text": "two"}}]
        assert answer.json()["usage"]["total_tokens"] == 21
        (_, first), (where, last) = server.requests
    assert where == "/v1/rerank"
    assert first == {**asked, "model": "there"}
    assert (last["documents"], last["top_n"]) == (["one", "two"], 1)


@pytest.mark.parametrize("backend", ["llamacpp", "openai", "anthropic"])
async def test_tokens_are_counted_where_the_backend_can_count(tmp_path: Path, backend: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    async with backend_of_kind(tmp_path, backend) as (_, http):
        anthropic = await http.post("/v1/messages/count_tokens", json=body)
    assert anthropic.json() == {"input_tokens": 21}


@pytest.mark.parametrize("client", [*CHATS, "llamacpp"])
@each_backend
@each_mode
async def test_an_error_is_returned_in_the_clients_protocol(
    tmp_path: Path, client: str, backend: str, stream: bool
) -> None:
    path, body = (CHATS if client in CHATS else PROMPTS)[client][0](stream)
    if (client, backend) == ("llamacpp", "anthropic"):
        return  # refused by the gateway itself, below
    async with backend_of_kind(tmp_path, backend) as (server, http):
        server.answer = ScriptedAnswer(error=(400, "too many umlauts"))
        answer = await http.post(path, json={"model": "m", **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert "too many umlauts" in (error if client == "ollama" else error["message"])
    assert answer.json().get("type") == ("error" if client == "anthropic" else None)


REASONING: dict[str, dict[str, Any]] = {
    "openai": {"reasoning_effort": "high"},
    "anthropic": {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
}


@pytest.mark.parametrize("client", REASONING)
@pytest.mark.parametrize("backend", ["openai", "ollama", "anthropic"])
async def test_a_request_is_retried_without_reasoning_if_the_model_rejects_it(
    tmp_path: Path, client: str, backend: str
) -> None:
    path, body = CHATS[client][0](False)
    async with backend_of_kind(tmp_path, backend) as (server, http):
        server.answer = ScriptedAnswer(reasoning_supported=False)
        answer = await http.post(path, json={"model": "m", **body, **REASONING[client]})
        assert answer.status_code == (400 if client == backend else 200), answer.text
        server.answer = ScriptedAnswer(error=(400, "think of something else"))
        asked = len(server.requests)
        refused = await http.post(path, json={"model": "m", **body})
    assert refused.status_code == 400
    assert len(server.requests) == asked + 1


async def test_a_model_that_takes_no_budget_for_reasoning_gets_an_effort(tmp_path: Path) -> None:
    refusal = {
        "type": "invalid_request_error",
        "message": '"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive" and '
        '"output_config.effort" to control thinking behavior.',
    }
    async with backend_of_kind(tmp_path, "anthropic") as (server, http):
        server.answer = ScriptedAnswer(thoughts=("Hm.",))
        server.prepared = [(400, "application/json", json.dumps({"type": "error", "error": refusal}).encode())]
        body = {
            "model": "m",
            "max_tokens": 8000,
            "reasoning_effort": "high",
            "messages": [{"role": "user", "content": "Hi"}],
        }
        response = await http.post("/v1/chat/completions", json=body)
    assert (response.status_code, len(server.requests)) == (200, 2)
    assert response.json()["choices"][0]["message"]["reasoning_content"] == "Hm."
    sent = server.requests[-1][1]
    assert sent["thinking"] == {"type": "adaptive", "display": "summarized"}
    assert sent["output_config"] == {"effort": "high"}


@each_chat
@each_backend
async def test_an_error_in_mid_stream_ends_the_stream_with_an_error(tmp_path: Path, client: str, backend: str) -> None:
    path, body = CHATS[client][0](True)
    async with backend_of_kind(tmp_path, backend) as (server, http):
        server.answer = ScriptedAnswer(breaks="the mountain moved")
        answer = await http.post(path, json={"model": "m", **body})
    assert answer.status_code == 200
    assert "capital" in answer.text
    events = [json.loads(line) for line in answer.text.splitlines()] if client == "ollama" else data_events(answer.text)
    error = events[-1]["error"]
    assert "broke off its answer" in (error if client == "ollama" else error["message"])


@pytest.mark.parametrize(
    ("path", "body", "backends"),
    [
        ("/v1/completions", {"prompt": "Once"}, ("anthropic",)),
        ("/api/generate", {"prompt": "Once", "raw": True}, ("anthropic",)),
        ("/completion", {"prompt": "Once"}, ("anthropic",)),
        ("/v1/embeddings", {"input": "one"}, ("anthropic",)),
        ("/api/embed", {"input": "one"}, ("anthropic",)),
        ("/v1/rerank", {"query": "q", "documents": ["d"]}, ("ollama", "anthropic")),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "Hi"}]}, ("ollama",)),
    ],
)
async def test_unsupported_operations_are_rejected_with_an_explanation(
    tmp_path: Path, path: str, body: dict[str, Any], backends: tuple[str, ...]
) -> None:
    for backend in backends:
        folder = tmp_path / backend
        folder.mkdir()
        async with backend_of_kind(folder, backend) as (server, http):
            answer = await http.post(path, json={"model": "m", **body})
            assert answer.status_code in (400, 404, 501), (backend, answer.text)
            assert "does not support" in answer.text, (backend, answer.text)
            assert server.requests == []

"""Requests for Ollama backends: forwarded, or encoded from other protocols."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes.ollama_harness import HI, OllamaHarness

from hostler.adapters.base import Incoming
from hostler.adapters.canonical import (
    Chunk,
    CountRequest,
    EmbedRequest,
    Origin,
    Request,
    RerankRequest,
    ResponseHead,
)
from hostler.adapters.errors import BadRequest
from hostler.adapters.ollama import context as memory
from hostler.adapters.ollama.response_parser import OllamaParser
from hostler.adapters.ollama.upstream import OllamaUpstream
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.openai.upstream import OpenAIUpstream

TRANSCRIPTS = Path(__file__).parents[2] / "transcripts" / "ollama"


LINES = ResponseHead(media_type="application/x-ndjson")


JSON = ResponseHead(media_type="application/json; charset=utf-8")


def transcript(name: str) -> bytes:
    return (TRANSCRIPTS / name).read_bytes()


def parse(segments: Iterable[bytes], *, head: ResponseHead = LINES, operation: str = "chat") -> list[Chunk]:
    parser = OllamaParser(operation)
    parser.start(head)
    chunks = [chunk for segment in segments for chunk in parser.feed(segment)]
    return chunks + list(parser.finish())


def from_openai(path: str = "/v1/chat/completions", **body: Any) -> Request:
    adapter = OpenAIAdapter()
    operation = next(found for found in adapter.operations if found.path == path)
    sent = json.dumps({"model": "a", **body}).encode()
    return adapter.expand(adapter.decode(operation, Incoming(method="POST", path=path, body=sent)))


def built_for(request: Request, *, stream: bool = True) -> tuple[str, dict[str, Any]]:
    wire = OllamaUpstream().build(request, model="there", stream=stream)
    return wire.path, json.loads(wire.body)


def test_an_openai_conversation_is_encoded() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": 2}'}}
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"minimum": 1}}}
    path, body = built_for(
        from_openai(
            messages=[
                {"role": "developer", "content": "s"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "t"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    ],
                },
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "1"},
            ],
            tools=[tool],
            max_tokens=5,
            temperature=0,
            stop="x",
            reasoning_effort="minimal",
            response_format={"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
            logprobs=True,
            top_logprobs=2,
        )
    )
    assert path == "/api/chat"
    assert body == {
        "model": "there",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "t", "images": ["AAAA"]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "c1", "function": {"index": 0, "name": "f", "arguments": {"b": 1, "a": 2}}}],
            },
            {"role": "tool", "content": "1", "tool_name": "f", "tool_call_id": "c1"},
        ],
        "tools": [tool],
        "stream": True,
        "format": {"type": "object"},
        "logprobs": True,
        "top_logprobs": 2,
        "think": "low",
        "options": {"temperature": 0.0, "stop": ["x"], "num_predict": 5},
    }


def test_unset_parameters_are_not_sent() -> None:
    assert built_for(from_openai(messages=HI), stream=False)[1] == {"model": "there", "messages": HI, "stream": False}


def test_prompts_and_texts_have_their_own_paths() -> None:
    assert built_for(from_openai("/v1/completions", prompt="p", max_tokens=1)) == (
        "/api/generate",
        {"model": "there", "prompt": "p", "raw": True, "stream": True, "options": {"num_predict": 1}},
    )
    assert built_for(from_openai("/v1/completions", prompt="p", suffix="s"))[1]["suffix"] == "s"
    assert built_for(from_openai("/v1/embeddings", input=["a", "b"])) == (
        "/api/embed",
        {"model": "there", "input": ["a", "b"]},
    )
    plain = EmbedRequest(origin=Origin(wire="llamacpp", operation="x"), inputs=("a",), normalize=False, keep_alive_s=9)
    assert built_for(plain) == ("/api/embeddings", {"model": "there", "prompt": "a", "keep_alive": 9.0})


def test_what_ollama_does_not_support_is_rejected() -> None:
    far = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}]
    with pytest.raises(BadRequest, match="data only"):
        built_for(from_openai(messages=far))
    with pytest.raises(BadRequest, match="does not support"):
        built_for(RerankRequest(origin=Origin(wire="openai", operation="rerank"), query="q"))


@pytest.mark.parametrize(
    ("request_", "content"),
    [
        (
            CountRequest(origin=Origin(wire="anthropic", operation="count_tokens")),
            "the Ollama protocol has no token counts",
        ),
        (RerankRequest(origin=Origin(wire="openai", operation="rerank")), "the Ollama protocol has no reranking"),
    ],
)
def test_unsupported_kinds_of_requests_are_named(request_: Request, content: str) -> None:
    with pytest.raises(BadRequest, match=f"does not support this kind of request: {content}"):
        built_for(request_)


def test_a_body_in_the_same_protocol_is_forwarded_with_its_model_replaced() -> None:
    body = b'{ "model" : "smol","messages":[{"role":"user","content":"x"}],  "new":{"b":1,"a":1.0} }'
    request = OllamaHarness().decode("chat", body)
    sent = OllamaUpstream().build(request, model="there", stream=True)
    assert (sent.path, sent.body) == ("/api/chat", body.replace(b'"smol"', b'"there"'))
    whole = OllamaUpstream().build(request, model="there", stream=False)
    assert json.loads(whole.body)["stream"] is False


def test_a_body_that_only_go_accepts_is_encoded_anew() -> None:
    request = OllamaHarness().decode(
        "chat", b'{"MODEL":"smol","Messages":[{"role":"user","content":"x"}],"new":1} trailing'
    )
    sent = json.loads(OllamaUpstream().build(request, model="there", stream=True).body)
    assert sent == {"model": "there", "messages": [{"role": "user", "content": "x"}], "new": 1}


def test_a_packed_context_is_not_sent_as_tokens() -> None:
    for context, sent in ((memory.pack_context([("user", "a")]), None), ([1, 2], [1, 2])):
        request = OllamaHarness().decode("generate", {"model": "smol", "prompt": "p", "context": context})
        assert built_for(request)[1]["context"] == sent


@pytest.mark.parametrize("stream", [True, False])
def test_forwarded_lines_have_the_name_that_the_client_requested(stream: bool) -> None:
    harness = OllamaHarness()
    body = transcript("chat.ndjson" if stream else "chat.json")
    head = LINES if stream else JSON
    response = harness.encode(harness.chat(model="SMOL", stream=stream), *parse([body], head=head), head=head)
    assert response == body.replace(b'"model":"there"', b'"model":"SMOL"')


def test_a_stream_is_folded_for_a_client_that_does_not_stream() -> None:
    harness = OllamaHarness()
    response = json.loads(harness.encode(harness.chat(stream=False), *parse([transcript("chat.ndjson")]), head=LINES))
    assert response["message"] == {"role": "assistant", "content": "I <am>\né", "thinking": "hmm "}
    assert (response["done_reason"], response["eval_count"]) == ("length", 6)


def test_an_ollama_response_is_encoded_for_an_openai_client() -> None:
    adapter = OpenAIAdapter()
    request = from_openai(messages=HI, stream=False)
    encoder = adapter.encoder(request, response_id="c", created=1, progress="off")
    encoder.start(LINES)
    for chunk in parse([transcript("tools.ndjson")]):
        assert encoder.encode(chunk) == b""
    choice = msgspec.json.decode(encoder.finish())["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["f", "g"]


def test_progress_is_removed_from_the_history() -> None:
    shown = "[hostler] loading b (5 s left)\n"
    turns = [
        {"role": "user", "content": shown},
        {"role": "assistant", "content": f"<think>{shown}</think>Hi", "thinking": f"{shown}Hm."},
    ]
    request = OllamaHarness().chat(messages=turns)
    _, body = built_for(request)
    assert body["messages"] == [turns[0], {"role": "assistant", "content": "Hi", "thinking": "Hm."}]
    decoded = OpenAIUpstream().build(request, model="there", stream=True)
    assert json.loads(decoded.body)["messages"][1]["content"] == "Hi"

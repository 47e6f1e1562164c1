"""Requests for Anthropic backends: forwarded, or encoded from other protocols."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from hostler.adapters.anthropic.response_parser import AnthropicParser
from hostler.adapters.anthropic.upstream import AnthropicUpstream
from hostler.adapters.base import Incoming
from hostler.adapters.canonical import Chunk, EmbedRequest, Origin, Request, ResponseHead
from hostler.adapters.errors import BadRequest
from hostler.adapters.openai.adapter import OpenAIAdapter

STREAM = ResponseHead(media_type="text/event-stream; charset=utf-8")


@pytest.fixture
def foreign() -> Callable[..., Request]:
    """An OpenAI client's request, expanded."""

    def make(*messages: dict[str, Any], **fields: Any) -> Request:
        openai = OpenAIAdapter()
        operation = openai.operations[0]
        body = {"model": "a", "messages": list(messages) or [{"role": "user", "content": "Hi"}], **fields}
        incoming = Incoming(method="POST", path=operation.path, body=json.dumps(body).encode())
        return openai.expand(openai.decode(operation, incoming))

    return make


def encoded(request: Request, **options: Any) -> Any:
    sent = AnthropicUpstream().build(request, model="claude", stream=options.get("stream", True))
    assert sent.path == "/v1/messages"
    assert sent.headers == (("anthropic-version", "2023-06-01"),)
    return json.loads(sent.body)


def test_a_request_in_the_same_protocol_is_forwarded(decode_request: Any, transcript: Any) -> None:
    body = transcript("anthropic/claude-code.json")
    headers = {"anthropic-version": "2024-01-01", "anthropic-beta": "a,b", "x-api-key": "secret", "authorization": "no"}
    sent = AnthropicUpstream().build(
        decode_request("/v1/messages", body, query="beta=true", headers=headers), model="claude", stream=True
    )
    assert sent.body == body.replace(b'"claude-sonnet-4-5"', b'"claude"')
    assert sent.path == "/v1/messages?beta=true"
    assert sent.headers == (("anthropic-version", "2024-01-01"), ("anthropic-beta", "a,b"))


@pytest.mark.parametrize("signature", ["", None])
def test_unsigned_thinking_is_removed(decode_request: Any, signature: str | None) -> None:
    unsigned = {"type": "thinking", "thinking": "Hm", "signature": signature}
    signed = {**unsigned, "signature": "EqQB"}
    hello = {"role": "assistant", "content": [{"type": "text", "text": 'Hello "signature":""'}]}
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [unsigned, *hello["content"]]},
        {"role": "assistant", "content": [unsigned]},
        {"role": "assistant", "content": [signed]},
    ]
    sent = AnthropicUpstream().build(
        decode_request("/v1/messages", {"model": "a", "messages": turns}), model="b", stream=False
    )
    assert json.loads(sent.body)["messages"] == [turns[0], hello, turns[3]]


def test_a_conversation_of_another_protocol_is_encoded(foreign: Any) -> None:
    calls = [{"id": "c.1", "type": "function", "function": {"name": "look", "arguments": '{"at":"x"}'}}]
    request = foreign(
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": [
            {"type": "text", "text": "Look"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}},
        ]},
        {"role": "assistant", "content": None, "tool_calls": calls, "reasoning_content": "Hm"},
        {"role": "tool", "tool_call_id": "c.1", "content": "a map"},
        {"role": "user", "content": "And?"},
        tools=[{"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}],
        tool_choice="required", parallel_tool_calls=False, max_tokens=50, temperature=1.5, top_p=0.9, stop=["END", "\n"],
    )  # fmt: skip
    assert encoded(request) == {
        "model": "claude",
        "system": "Be brief",
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "Look"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}},
            ]},
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": "c_1", "name": "look", "input": {"at": "x"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c_1", "content": [{"type": "text", "text": "a map"}]},
                {"type": "text", "text": "And?"},
            ]},
        ],
        "tools": [{"name": "look", "input_schema": {"type": "object"}, "description": "d"}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "max_tokens": 50,
        "stop_sequences": ["END"],
        "temperature": 1.0,
        "stream": True,
    }  # fmt: skip


def test_max_tokens_is_always_sent_and_empty_stop_sequences_are_not(foreign: Any) -> None:
    body = encoded(
        foreign(
            {"role": "user", "content": "a"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "b"}
        )
    )
    assert body["max_tokens"] == 4096
    assert [message["role"] for message in body["messages"]] == ["user"]


def test_a_response_to_be_continued_does_not_end_with_a_space(foreign: Any) -> None:
    body = encoded(foreign({"role": "user", "content": "a"}, {"role": "assistant", "content": "It is \n"}))
    assert body["messages"][-1]["content"] == [{"type": "text", "text": "It is"}]


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({"reasoning_effort": "low", "max_tokens": 8000}, {"type": "enabled", "budget_tokens": 1024}),
        ({"reasoning_effort": "high", "max_tokens": 8000}, {"type": "enabled", "budget_tokens": 4000}),
        ({"reasoning_effort": "high", "max_tokens": 900}, None),
        ({"reasoning_effort": "none"}, None),
        ({}, None),
    ],
)
def test_thinking_has_a_budget_within_the_limit(foreign: Any, fields: dict[str, Any], thinking: Any) -> None:
    body = encoded(foreign(temperature=0.5, **fields))
    assert body.get("thinking") == thinking
    assert ("temperature" in body) is (thinking is None)


def test_unsupported_requests_are_rejected(foreign: Any, decode_request: Any) -> None:
    sound = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
    with pytest.raises(BadRequest, match="audio"):
        encoded(foreign({"role": "user", "content": [sound]}))
    with pytest.raises(BadRequest):
        encoded(EmbedRequest(origin=Origin(wire="openai", operation="embeddings"), inputs=("x",)))


def test_an_output_format_is_passed_on(foreign: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    body = encoded(foreign(response_format=form))
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": {"type": "object"}}}


def parsed(segments: Iterable[bytes], head: ResponseHead = STREAM, *, fields: bool = True) -> list[Chunk]:
    parser = AnthropicParser(fields=fields)
    parser.start(head)
    return [*(chunk for segment in segments for chunk in parser.feed(segment)), *parser.finish()]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_of_the_same_protocol_gets_the_same_bytes(
    decode_request: Any, start_encoder: Any, transcript: Any, stream: bool
) -> None:
    body = transcript("anthropic/anthropic.sse" if stream else "anthropic/anthropic.json")
    head = STREAM if stream else ResponseHead(length=len(body))
    encoder = start_encoder(
        decode_request("/v1/messages", {"messages": [{"role": "user", "content": "Hi"}], "stream": stream}), head
    )
    got = [encoder.encode(chunk) for chunk in parsed([body[:300], body[300:]], head, fields=False)]
    assert b"".join([*got, encoder.finish()]) == body
    assert encoder.length == (None if stream else len(body))


def test_token_counts_are_requested_and_decoded(decode_request: Any, start_encoder: Any) -> None:
    count = decode_request("/v1/messages/count_tokens", {"model": "a", "messages": [{"role": "user", "content": "Hi"}]})
    upstream = AnthropicUpstream()
    assert upstream.build(count, model="claude", stream=True).path == "/v1/messages/count_tokens"
    parser = upstream.parser(count, fields=False)
    parser.start(ResponseHead())
    encoder = start_encoder(count)
    for chunk in (*parser.feed(b'{"input_tokens":37}'), *parser.finish()):
        assert encoder.encode(chunk) == b""
    assert json.loads(encoder.finish()) == {"input_tokens": 37}

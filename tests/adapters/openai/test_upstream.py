"""Requests for OpenAI backends: forwarded, or encoded from other protocols."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from fakes.openai_chats import FULL

from hostler.adapters.canonical import (
    ChatRequest,
    Origin,
    Request,
)
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.openai.upstream import OpenAIUpstream

Chat = Callable[..., ChatRequest]


def test_an_upload_is_forwarded_as_a_form(decode_request: Any, upstream: OpenAIUpstream) -> None:
    kind = "multipart/form-data; boundary=q"
    body = b'--q\r\nContent-Disposition: form-data; name="model"\r\n\r\nw\r\n--q\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\x00\xff\r\n--q--\r\n'
    request = decode_request("/v1/audio/transcriptions", body, headers={"content-type": kind})
    sent = upstream.build(request, model="large", stream=False)
    assert (request.model, sent.path, sent.content_type) == ("w", "/v1/audio/transcriptions", kind)
    assert sent.body == body.replace(b"\r\n\r\nw\r\n", b"\r\n\r\nlarge\r\n")


def test_a_stream_is_forwarded_with_only_the_model_changed(decode_request: Any, upstream: OpenAIUpstream) -> None:
    body = b'{ "stream":true,"model" : "a", "messages":[ {"role":"user","content":"\\u00e9"} ], "x":1e400 }'
    sent = upstream.build(decode_request("/chat/completions", body), model="b/c", stream=True)
    assert (sent.path, sent.body) == ("/v1/chat/completions", body.replace(b'"a"', b'"b/c"'))


def test_a_whole_response_is_requested_as_a_stream_with_usage(chat: Chat, upstream: OpenAIUpstream) -> None:
    sent = json.loads(upstream.build(chat(stream=False, stream_options={"x": 1}), model="b", stream=True).body)
    assert (sent["stream"], sent["stream_options"]) == (True, {"x": 1, "include_usage": True})
    plain = json.loads(upstream.build(chat(), model="b", stream=False).body)
    assert "stream" not in plain


@pytest.mark.parametrize(
    ("requested", "result"),
    [("verbose", True), ("logprobs", True), ("n_probs", 2), ("logprobs", False), ("n_probs", 0)],
)
def test_what_a_stream_lacks_is_requested_whole(
    chat: Chat, upstream: OpenAIUpstream, requested: str, result: Any
) -> None:
    sent = json.loads(upstream.build(chat(**{requested: result}), model="b", stream=True).body)
    assert ("stream" in sent) is not bool(result)


def test_progress_lines_are_removed_from_the_history(decode_request: Any, upstream: OpenAIUpstream) -> None:
    shown = "[hostler] loading b: 40% (12 s left)\n[hostler] ready b\nLet me think.\nabout [hostler] x\n"
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "[hostler] mine stays"},
        {"role": "assistant", "reasoning_content": shown, "reasoning": "[hostler] last", "content": "Hi", "extra": 1},
    ]
    request = decode_request("/v1/chat/completions", {"model": "a", "messages": messages, "x": 1.0})
    sent = json.loads(upstream.build(request, model="a", stream=False).body)
    assert sent["messages"][0] == messages[0]
    assert sent["messages"][1] == {
        **messages[1],
        "reasoning_content": "Let me think.\nabout [hostler] x\n",
        "reasoning": "",
    }


def crossed(request: Request) -> Request:
    """The request with the origin of another protocol."""
    return msgspec.structs.replace(request, origin=Origin(wire="other", operation="x"))


def test_a_decoded_chat_is_encoded_again(adapter: OpenAIAdapter, chat: Chat) -> None:
    request = crossed(adapter.expand(chat(**FULL, stream=True)))
    sent = OpenAIUpstream(engine=True).build(request, model="b", stream=True)
    assert sent.path == "/v1/chat/completions"
    assert json.loads(sent.body) == {
        **FULL,
        "model": "b",
        "temperature": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "chat_template_kwargs": {"enable_thinking": True},
    }


def test_completions_embeddings_and_reranking_are_encoded(
    adapter: OpenAIAdapter, decode_request: Any, upstream: OpenAIUpstream
) -> None:
    def sent(path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        built = upstream.build(crossed(adapter.expand(decode_request(path, body))), model="b", stream=False)
        return built.path, json.loads(built.body)

    assert sent("/v1/completions", {"prompt": ["x"], "suffix": "y", "max_tokens": 3, "stop": "z"}) == (
        "/v1/completions",
        {"model": "b", "prompt": "x", "suffix": "y", "max_tokens": 3, "stop": ["z"], "stream": False},
    )
    assert sent("/v1/embeddings", {"input": "x", "dimensions": 8}) == (
        "/v1/embeddings",
        {"model": "b", "input": ["x"], "encoding_format": "float", "dimensions": 8},
    )
    assert sent("/v1/rerank", {"query": "q", "documents": ["x", {"text": "y"}], "top_n": 1}) == (
        "/v1/rerank",
        {"model": "b", "query": "q", "documents": ["x", "y"], "top_n": 1},
    )


def test_tool_results_without_an_id_find_their_call(
    upstream: OpenAIUpstream, adapter: OpenAIAdapter, chat: Chat
) -> None:
    calls = [{"function": {"name": name, "arguments": "{}"}} for name in ("one", "two")]
    messages = [
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "name": "two", "content": "2"},
        {"role": "tool", "content": "1"},
    ]
    request = crossed(adapter.expand(chat(messages=messages)))
    sent = json.loads(upstream.build(request, model="b", stream=False).body)["messages"]
    assert [call["id"] for call in sent[0]["tool_calls"]] == ["call_1", "call_2"]
    assert [message["tool_call_id"] for message in sent[1:]] == ["call_2", "call_1"]

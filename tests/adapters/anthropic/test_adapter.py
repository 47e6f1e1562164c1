"""Anthropic's routes, and what depends on the client or the backend."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters.anthropic.adapter import AnthropicAdapter
from hostler.adapters.anthropic.upstream import AnthropicUpstream
from hostler.adapters.canonical import ChatRequest, CountRequest
from hostler.adapters.errors import BadRequest
from hostler.adapters.openai.upstream import OpenAIUpstream


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def test_only_the_model_routes_need_the_version_header(adapter: AnthropicAdapter) -> None:
    headers = {operation.path: operation.header for operation in adapter.operations}
    assert headers["/v1/messages"] is headers["/v1/messages/count_tokens"] is None
    assert headers["/v1/models"] == headers["/v1/models/{id:path}"] == "anthropic-version"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": [user({"type": "video"})]}, "'video'"),
        ({"messages": [user({"type": "image", "source": {"type": "file", "file_id": "f"}})]}, "stored files are not supported"),
        ({"messages": [user({"type": "document", "source": {"type": "base64", "data": ""}})]}, "plain text"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "Anthropic's own"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_what_only_anthropic_supports_is_rejected_for_other_backends(
    decode_request: Any, adapter: AnthropicAdapter, path: str, fields: dict[str, Any], words: str
) -> None:
    request = decode_request(path, {"model": "a", "messages": [{"role": "user", "content": "Hi"}], **fields})
    with pytest.raises(BadRequest, match=words):
        adapter.expand(request)
    assert json.loads(AnthropicUpstream().build(request, model="claude", stream=False).body)["model"] == "claude"


def test_max_tokens_is_required_only_with_the_version_header(decode_request: Any) -> None:
    body = {"model": "a", "messages": [{"role": "user", "content": "Hi"}]}
    version = {"anthropic-version": "2023-06-01"}
    with pytest.raises(BadRequest, match="max_tokens: Field required"):
        decode_request("/v1/messages", body, headers=version)
    assert isinstance(decode_request("/v1/messages", body), ChatRequest)
    assert isinstance(decode_request("/v1/messages/count_tokens", body, headers=version), CountRequest)


def test_a_count_sends_the_same_conversation_to_an_engine(decode_request: Any, transcript: Any) -> None:
    body = transcript("anthropic/claude-code.json")
    count = decode_request("/v1/messages/count_tokens", body)
    assert isinstance(count, CountRequest)
    upstream = OpenAIUpstream()
    requested = upstream.build(count, model="qwen", stream=True)
    content = json.loads(upstream.build(decode_request("/v1/messages", body), model="qwen", stream=True).body)
    assert requested.path == "/v1/chat/completions/input_tokens"
    counted = json.loads(requested.body)
    for name in ("messages", "tools", "model"):
        assert counted[name] == content[name]
    assert "stream" not in counted

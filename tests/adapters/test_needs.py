"""What a request needs of a model is found in every protocol."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters.anthropic.adapter import AnthropicAdapter
from hostler.adapters.base import Adapter, Incoming
from hostler.adapters.canonical import Request
from hostler.adapters.llamacpp.adapter import LlamaCppAdapter
from hostler.adapters.lmstudio.adapter import LMStudioAdapter
from hostler.adapters.needs import needs, service_of, texts
from hostler.adapters.ollama.adapter import OllamaAdapter
from hostler.adapters.openai.adapter import OpenAIAdapter

PNG = "iVBORw0KGgo="
URL = f"data:image/png;base64,{PNG}"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
OPENAI, ANTHROPIC, OLLAMA = OpenAIAdapter(), AnthropicAdapter(), OllamaAdapter()
LMSTUDIO, LLAMACPP = LMStudioAdapter(), LlamaCppAdapter()


def said(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts) if parts else "Hello"}]


IMAGE = {"type": "image_url", "image_url": {"url": URL}}
CASES: list[tuple[Adapter, str, dict[str, Any], set[str]]] = [
    (OPENAI, "/v1/chat/completions", {"messages": said()}, set()),
    (OPENAI, "/v1/chat/completions", {"messages": [{"role": "user", "content": "an image, audio and tools"}]}, set()),
    (OPENAI, "/v1/chat/completions", {"messages": said(IMAGE)}, {"vision"}),
    (OPENAI, "/v1/chat/completions",
     {"messages": said({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}})}, {"audio"}),
    (OPENAI, "/v1/chat/completions", {"messages": said(), "tools": [TOOL]}, {"tools"}),
    (OPENAI, "/v1/chat/completions", {"messages": said(), "tools": [TOOL], "tool_choice": "none"}, set()),
    (OPENAI, "/v1/chat/completions", {"messages": said(), "tools": []}, set()),
    (OPENAI, "/v1/chat/completions", {"messages": said(), "functions": [TOOL["function"]]}, {"tools"}),
    (OPENAI, "/v1/chat/completions", {"messages": said({"type": "video_url", "video_url": {"url": "image"}})}, set()),
    (OPENAI, "/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": URL}]}]},
     {"vision"}),
    (OPENAI, "/v1/responses", {"input": "Hello", "tools": [{"type": "function", "name": "f", "parameters": {}}]},
     {"tools"}),
    (OPENAI, "/v1/completions", {"prompt": "image tools"}, set()),
    (ANTHROPIC, "/v1/messages", {"max_tokens": 9, "messages": said(
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}})}, {"vision"}),
    (ANTHROPIC, "/v1/messages",
     {"max_tokens": 9, "messages": said(), "tools": [{"name": "f", "input_schema": {}}]}, {"tools"}),
    (OLLAMA, "/api/chat", {"messages": [{"role": "user", "content": "x", "images": [PNG]}]}, {"vision"}),
    (OLLAMA, "/api/chat", {"messages": [{"role": "user", "content": "x"}], "tools": [TOOL]}, {"tools"}),
    (OLLAMA, "/api/generate", {"prompt": "x", "images": [PNG]}, {"vision"}),
    (LMSTUDIO, "/api/v1/chat", {"input": [{"type": "image", "data_url": URL}]}, {"vision"}),
    (LMSTUDIO, "/api/v0/chat/completions", {"messages": said(IMAGE), "tools": [TOOL]}, {"vision", "tools"}),
    (LLAMACPP, "/completion", {"prompt": "image tools"}, set()),
]  # fmt: skip


def decoded(adapter: Adapter, path: str, body: dict[str, Any]) -> Request:
    operation = next(each for each in adapter.operations if each.path == path and "POST" in each.methods)
    return adapter.decode(
        operation, Incoming(method="POST", path=path, body=json.dumps({"model": "m", **body}).encode())
    )


@pytest.mark.parametrize(("adapter", "path", "body", "expected"), CASES)
def test_a_request_needs_what_it_contains(
    adapter: Adapter, path: str, body: dict[str, Any], expected: set[str]
) -> None:
    assert needs(decoded(adapter, path, body), adapter.expand) == {"completion", *expected}


def test_embeddings_need_nothing() -> None:
    assert needs(decoded(OPENAI, "/v1/embeddings", {"input": "image"}), OPENAI.expand) == frozenset()


def test_texts_of_a_conversation_belong_together_and_inputs_do_not() -> None:
    history = [*said(), {"role": "assistant", "content": "Yes?"}]
    assert list(texts(decoded(OPENAI, "/v1/chat/completions", {"messages": history}), OPENAI.expand)) == [
        ["Hello", "Yes?"]
    ]
    assert list(texts(decoded(OPENAI, "/v1/embeddings", {"input": ["a", "b"]}), OPENAI.expand)) == [["a"], ["b"]]
    assert list(texts(decoded(OPENAI, "/v1/embeddings", {"input": [[1, 2]]}), OPENAI.expand)) == []
    assert list(texts(decoded(LLAMACPP, "/completion", {"prompt": "a"}), LLAMACPP.expand)) == [["a", ""]]


@pytest.mark.parametrize(
    ("adapter", "path", "body", "service"),
    [
        (OPENAI, "/v1/chat/completions", {"messages": []}, "completion"),
        (OPENAI, "/v1/responses", {"input": "x"}, "completion"),
        (OPENAI, "/v1/completions", {"prompt": "x"}, "completion"),
        (OPENAI, "/v1/embeddings", {"input": "x"}, "embedding"),
        (OPENAI, "/v1/rerank", {"query": "x", "documents": []}, "rerank"),
        (OPENAI, "/v1/audio/speech", {"input": "x"}, "speech"),
        (OPENAI, "/v1/images/generations", {"prompt": "x"}, "images"),
        (ANTHROPIC, "/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}, "completion"),
        (LLAMACPP, "/completion", {"prompt": "x"}, "completion"),
        (LLAMACPP, "/embedding", {"content": "x"}, "embedding"),
        (LLAMACPP, "/infill", {"input_prefix": "x"}, "completion"),
        (LLAMACPP, "/reranking", {"query": "x", "documents": []}, "rerank"),
        (OLLAMA, "/api/embed", {"model": "m", "input": "x"}, "embedding"),
        (LMSTUDIO, "/api/v0/embeddings", {"input": "x"}, "embedding"),
        (LMSTUDIO, "/api/v1/chat", {"input": "x", "model": "m"}, "completion"),
        (LLAMACPP, "/tokenize", {"content": "x"}, None),
    ],
)
def test_a_request_is_of_a_kind_in_every_protocol(
    adapter: Adapter, path: str, body: dict[str, Any], service: str | None
) -> None:
    operation = next(each for each in adapter.operations if each.path == path and "POST" in each.methods)
    incoming = Incoming(method="POST", path=path, body=json.dumps(body).encode())
    assert service_of(adapter.decode(operation, incoming)) == service

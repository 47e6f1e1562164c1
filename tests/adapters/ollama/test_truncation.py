"""Requests that exceed the context are truncated as in Ollama."""

from __future__ import annotations

import json

import pytest
from fakes.ollama_harness import OllamaHarness

from hostler.adapters.canonical import ChatRequest, EmbedRequest
from hostler.adapters.errors import (
    BackendRejected,
)

TOO_LONG = json.dumps(
    {
        "error": {
            "code": 400,
            "message": "request (1000 tokens) exceeds the available context size (500 tokens), try increasing it",
            "type": "exceed_context_size_error",
        }
    }
).encode()


TOO_LARGE = b'{"error":{"code":500,"message":"input (600 tokens) is too large to process. increase the physical batch size (current batch size: 512)"}}'


@pytest.fixture
def harness() -> OllamaHarness:
    return OllamaHarness()


def rejected(status: int, body: bytes, wire: str = "openai") -> BackendRejected:
    return BackendRejected(
        "main-pc says no", backend="main-pc", wire=wire, backend_status=status, headers={}, body=body
    )


def turns(*pairs: tuple[str, str], **fields: object) -> dict[str, object]:
    return {"messages": [{"role": role, "content": text} for role, text in pairs], **fields}


def test_a_too_long_conversation_loses_its_oldest_messages_but_not_the_system_prompt(harness: OllamaHarness) -> None:
    result = turns(("system", "s"), ("user", "a" * 300), ("assistant", "b" * 300), ("user", "c" * 300))
    shorter = harness.adapter.amend(harness.chat(**result), rejected(400, TOO_LONG))
    assert isinstance(shorter, ChatRequest) and shorter.conversation is not None
    assert [message.role for message in shorter.conversation.messages] == ["system", "user"]


def test_a_tool_result_is_dropped_with_its_call(harness: OllamaHarness) -> None:
    result = turns(("user", "a" * 900), ("assistant", "b" * 900), ("tool", "1"), ("user", "c" * 800))
    shorter = harness.adapter.amend(harness.chat(**result), rejected(400, TOO_LONG))
    assert isinstance(shorter, ChatRequest) and shorter.conversation is not None
    assert [message.role for message in shorter.conversation.messages] == ["user"]


def test_each_truncation_is_smaller_until_nothing_is_left(harness: OllamaHarness) -> None:
    request = harness.chat(**turns(("system", "s"), *[("user", "word " * 20)] * 12))
    sizes = []
    while request is not None:
        assert isinstance(request, ChatRequest) and request.conversation is not None
        sizes.append(len(request.conversation.messages))
        request = harness.adapter.amend(request, rejected(400, TOO_LONG))
    assert sizes[0] == 13 and sizes[-1] == 2 and sizes == sorted(set(sizes), reverse=True)


def test_nothing_is_truncated_against_the_clients_will_or_for_other_errors(harness: OllamaHarness) -> None:
    result = turns(("user", "a"), ("user", "b"))
    assert harness.adapter.amend(harness.chat(**result, truncate=False), rejected(400, TOO_LONG)) is None
    assert harness.adapter.amend(harness.chat(**result), rejected(400, b'{"error":"bad"}')) is None
    assert harness.adapter.amend(harness.chat(), rejected(400, TOO_LONG)) is None


def test_the_longest_input_of_an_embedding_is_truncated(harness: OllamaHarness) -> None:
    request = harness.decode("embed", {"model": "vectors", "input": ["short", "x" * 1200]})
    shorter = harness.adapter.amend(request, rejected(500, TOO_LARGE))
    assert isinstance(shorter, EmbedRequest) and shorter.inputs is not None
    assert shorter.inputs[0] == "short" and 900 < len(shorter.inputs[1]) < 1024

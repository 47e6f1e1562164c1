"""The `context` of `/api/generate`."""

from __future__ import annotations

import pytest
from fakes.ollama_harness import OllamaHarness

from hostler.adapters.canonical import (
    ChatRequest,
    Conversation,
    Request,
    Text,
)


@pytest.fixture
def harness() -> OllamaHarness:
    return OllamaHarness()


def conversation(request: Request) -> Conversation:
    assert isinstance(request, ChatRequest)
    assert request.conversation is not None
    return request.conversation


def content(request: Request) -> list[tuple[str, str]]:
    messages = conversation(request).messages
    return [(m.role, "".join(part.text for part in m.parts if isinstance(part, Text))) for m in messages]


def test_tokens_of_a_real_ollama_are_ignored(harness: OllamaHarness) -> None:
    for context in ([1, 2, 3], [4738899], [4738899, 10**9, 1], [4738899, 3, "x"], [4738899, 3, 7], [True]):
        request = harness.decode("generate", {"model": "smol", "prompt": "p", "context": context})
        assert content(request) == [("user", "p")]

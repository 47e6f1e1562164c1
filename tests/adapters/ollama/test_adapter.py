"""Requests are validated for their model."""

from __future__ import annotations

import pytest
from fakes.ollama_harness import OllamaHarness

from hostler.adapters.canonical import (
    ChatRequest,
    Conversation,
    Request,
)


@pytest.fixture
def harness() -> OllamaHarness:
    return OllamaHarness()


def conversation(request: Request) -> Conversation:
    assert isinstance(request, ChatRequest)
    assert request.conversation is not None
    return request.conversation


def test_a_thinking_model_thinks_by_default(harness: OllamaHarness) -> None:
    assert conversation(harness.chat(model="able")).thinking is True
    assert conversation(harness.chat(model="smol")).thinking is None
    assert conversation(harness.chat(model="smol", think=False)).thinking is False


def test_nothing_is_rejected_for_a_model_without_facts(harness: OllamaHarness) -> None:
    request = harness.chat(model="org/sub/far@v1", think=True, tools=[{"function": {"name": "f"}}])
    assert conversation(request).tools[0].name == "f"

"""Requests are validated for their model."""

from __future__ import annotations

import msgspec
import pytest
from fakes.ollama_harness import ABLE, OllamaHarness

from hostler.adapters.canonical import (
    ChatRequest,
    Conversation,
    Request,
)
from hostler.adapters.model_list import ModelList


@pytest.fixture
def harness() -> OllamaHarness:
    return OllamaHarness()


def conversation(request: Request) -> Conversation:
    assert isinstance(request, ChatRequest)
    assert request.conversation is not None
    return request.conversation


@pytest.mark.parametrize(
    ("values", "default", "asked", "meant"),
    [
        (("low", "medium", "high"), "medium", "high", "high"), (("low", "medium", "high"), "medium", "max", "medium"),
        (("minimal", "high"), "high", "minimal", "minimal"), ((True, False), True, "low", True), ((), None, "max", "max"),
    ],
)  # fmt: skip
def test_a_level_that_a_model_does_not_have_means_its_default(
    values: tuple[bool | str, ...], default: bool | str | None, asked: str, meant: bool | str
) -> None:
    card = msgspec.structs.replace(ABLE, name="smol", aliases=(), thinking=values, thinking_default=default)
    harness = OllamaHarness(ModelList(cards=(card,), index={"smol": card}))
    assert conversation(harness.chat(think=asked)).thinking == meant


def test_a_thinking_model_thinks_by_default(harness: OllamaHarness) -> None:
    assert conversation(harness.chat(model="able")).thinking is True
    assert conversation(harness.chat(model="smol")).thinking is None
    assert conversation(harness.chat(model="smol", think=False)).thinking is False


def test_nothing_is_rejected_for_a_model_without_facts(harness: OllamaHarness) -> None:
    request = harness.chat(model="org/sub/far@v1", think=True, tools=[{"function": {"name": "f"}}])
    assert conversation(request).tools[0].name == "f"

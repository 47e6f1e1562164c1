"""Reasoning options are dropped step by step, and unsupported kinds of requests are named."""

from __future__ import annotations

import msgspec
import pytest

from hostler.adapters.anthropic.upstream import AnthropicUpstream
from hostler.adapters.canonical import ChatRequest, Conversation, EmbedRequest, Origin, Passthrough
from hostler.adapters.degrade import unsupported, without_thinking
from hostler.adapters.errors import BackendRejected

ORIGIN = Origin(wire="anthropic", operation="messages")
CHAT = ChatRequest(origin=ORIGIN, conversation=Conversation(messages=(), thinking="high"))


def rejected(body: bytes = b"thinking is not supported", *, status: int = 400, wire: str = "ollama") -> BackendRejected:
    return BackendRejected("no", backend="b", wire=wire, backend_status=status, headers={}, body=body)


def thinking_of(request: object) -> object:
    assert isinstance(request, ChatRequest) and request.conversation is not None
    return request.conversation.thinking


def test_the_effort_is_dropped_first_and_then_the_reasoning() -> None:
    without_effort = without_thinking(CHAT, rejected())
    assert without_effort is not None and thinking_of(without_effort) is True
    plain = without_thinking(without_effort, rejected(b"Reasoning?", status=422))
    assert plain is not None and thinking_of(plain) is None
    assert without_thinking(plain, rejected()) is None


def test_a_model_that_takes_no_budget_is_asked_in_its_form_before_anything_is_dropped() -> None:
    error = rejected(
        b'"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive" and "output_config.effort"',
        wire="anthropic",
    )
    request = msgspec.structs.replace(CHAT, origin=Origin(wire="openai", operation="chat"))
    adaptive = without_thinking(request, error)
    assert adaptive is not None and thinking_of(adaptive) == "high"
    body = msgspec.json.decode(AnthropicUpstream().build(adaptive, model="claude", stream=True).body)
    assert body["thinking"] == {"type": "adaptive", "display": "summarized"}
    assert body["output_config"] == {"effort": "high"}
    without_effort = without_thinking(adaptive, rejected(b"output_config.effort: not supported", wire="anthropic"))
    assert without_effort is not None and thinking_of(without_effort) is True
    body = msgspec.json.decode(AnthropicUpstream().build(without_effort, model="claude", stream=True).body)
    assert body["thinking"]["type"] == "adaptive" and "output_config" not in body
    plain = without_thinking(without_effort, error)
    assert plain is not None and thinking_of(plain) is None
    assert "thinking" not in msgspec.json.decode(AnthropicUpstream().build(plain, model="claude", stream=True).body)


@pytest.mark.parametrize(
    "error", [rejected(b"temperature"), rejected(status=500), rejected(wire="anthropic")], ids=["other", "500", "same"]
)
def test_other_rejections_stand(error: BackendRejected) -> None:
    assert without_thinking(CHAT, error) is None


def test_requests_without_a_conversation_stand() -> None:
    assert without_thinking(msgspec.structs.replace(CHAT, conversation=None), rejected()) is None
    assert without_thinking(EmbedRequest(origin=ORIGIN), rejected()) is None


def test_an_unsupported_kind_of_request_is_named() -> None:
    message = unsupported(EmbedRequest(origin=ORIGIN), "the Anthropic protocol").message
    assert message.endswith("the Anthropic protocol has no embeddings. Use a model of another backend.")
    assert unsupported(Passthrough(origin=ORIGIN), "x").message.endswith("does not support this kind of request.")

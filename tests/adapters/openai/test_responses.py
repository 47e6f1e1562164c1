"""Requests of the responses API, decoded to conversations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters.base import Adapter, Incoming
from hostler.adapters.canonical import ChatMessage, ChatRequest, Request, Text, ToolCall
from hostler.adapters.errors import BadRequest
from hostler.adapters.openai.adapter import OpenAIAdapter


def requested(adapter: Adapter, path: str, **body: Any) -> Request:
    operation = next(each for each in adapter.operations if each.path == path)
    return adapter.decode(
        operation, Incoming(method="POST", path=path, body=json.dumps({"model": "m", **body}).encode())
    )


def test_items_become_messages() -> None:
    items = [
        {"role": "developer", "content": "D"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "U"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "S"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "web_search_call", "id": "x"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "O"}]},
        {"role": "assistant", "content": "A"},
    ]
    adapter = OpenAIAdapter()
    request = adapter.expand(
        requested(adapter, "/v1/responses", input=items, instructions="I", reasoning={"effort": "none"})
    )
    assert isinstance(request, ChatRequest)
    assert request.conversation is not None
    called = (
        ToolCall(index=0, id="c1", name="f", arguments="{}"),
        ToolCall(index=1, id="c2", name="g", arguments="{}"),
    )
    assert request.conversation.messages == (
        ChatMessage(role="system", parts=(Text(text="I\n\nD"),)),
        ChatMessage(role="user", parts=(Text(text="U"),)),
        ChatMessage(role="assistant", reasoning="S", tool_calls=called),
        ChatMessage(role="tool", parts=(Text(text="O"),), tool_call_id="c1"),
        ChatMessage(role="assistant", parts=(Text(text="A"),)),
    )
    assert request.conversation.thinking is False


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"), ({"input": [{"role": "wizard"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]"),
        ({"input": 1}, "input"), ({}, "input"), ({"input": "x", "previous_response_id": "r"}, "previous_response_id"),
        ({"input": "x", "conversation": {"id": "c"}}, "conversation"),
    ],
)  # fmt: skip
def test_what_a_chat_cannot_express_is_named(body: dict[str, Any], param: str) -> None:
    adapter = OpenAIAdapter()
    with pytest.raises(BadRequest) as caught:
        adapter.expand(requested(adapter, "/v1/responses", **body))
    assert caught.value.param == param


def test_the_gateways_progress_in_earlier_answers_is_removed() -> None:
    """A client may have got it in another protocol."""
    shown = "[hostler] loading b: 40% (12 s left)\n"
    items = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": shown + "Hm."}]},
        {"role": "assistant", "content": f"<think>{shown}</think>Hi"},
        {"role": "user", "content": shown},
    ]
    adapter = OpenAIAdapter()
    request = adapter.expand(requested(adapter, "/v1/responses", input=items))
    assert isinstance(request, ChatRequest)
    assert request.conversation is not None
    assistant, user = request.conversation.messages
    assert (assistant.reasoning, assistant.parts) == ("Hm.", (Text(text="Hi"),))
    assert user.parts == (Text(text=shown),)

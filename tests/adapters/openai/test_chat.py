"""OpenAI's requests, fully decoded for other backends."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fakes.openai_chats import FULL

from hostler.adapters.canonical import (
    ChatRequest,
    Conversation,
    Media,
    Text,
    ToolCall,
)
from hostler.adapters.errors import BadRequest
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.openai.chat import with_text_arguments

Chat = Callable[..., ChatRequest]


def test_progress_lines_are_removed_when_decoding(adapter: OpenAIAdapter, decode_request: Any) -> None:
    for shown, meant in (("[hostler] loading b\nHm.", "Hm."), ("[hostler] loading b\n", None), ("Hm.", "Hm.")):
        content = {"role": "assistant", "reasoning_content": shown, "content": "Hi"}
        request = adapter.expand(decode_request("/v1/chat/completions", {"model": "a", "messages": [content]}))
        assert isinstance(request, ChatRequest) and request.conversation is not None
        assert request.conversation.messages[0].reasoning == meant


@pytest.mark.parametrize("in_parts", [False, True])
def test_progress_within_the_content_is_removed_when_decoding(
    adapter: OpenAIAdapter, decode_request: Any, in_parts: bool
) -> None:
    shown = "<think>\n[hostler] loading b\n</think>\n\nHi"
    for role, meant in (("assistant", "Hi"), ("user", shown)):
        content = [{"type": "text", "text": shown}] if in_parts else shown
        messages = [{"role": role, "content": content}]
        request = adapter.expand(decode_request("/v1/chat/completions", {"model": "a", "messages": messages}))
        assert isinstance(request, ChatRequest) and request.conversation is not None
        assert request.conversation.messages[0].parts == (Text(text=meant),)


def test_a_chat_is_fully_decoded(adapter: OpenAIAdapter, chat: Chat) -> None:
    request = adapter.expand(chat(**FULL))
    assert isinstance(request, ChatRequest)
    conversation = request.conversation
    assert isinstance(conversation, Conversation)
    assert conversation.messages[1].parts == (
        Text(text="What is this?"),
        Media(kind="image", data="AAAA", mime="image/png"),
        Media(kind="image", url="https://x.example/a.png"),
        Media(kind="audio", data="BBBB", mime="audio/mp3"),
    )
    assert conversation.messages[2].reasoning == "Hm."
    assert conversation.messages[2].tool_calls == (ToolCall(id="c1", name="look", arguments='{"at":1}'),)
    assert (conversation.tools[0].name, conversation.tool_choice, conversation.thinking) == ("look", "look", "low")
    assert conversation.sampling.stop == ("\n",)
    assert request.output.logprobs == 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": 1}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages[0].content[0]"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": [1]}, "stop[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:x,y"}]}]}, "messages"),
    ],
)
def test_an_invalid_field_is_named(adapter: OpenAIAdapter, chat: Chat, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        adapter.expand(chat(**fields))
    assert caught.value.param == param


def history(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]}]


@pytest.mark.parametrize(
    ("arguments", "text"), [({"a": 1}, '{"a":1}'), (None, "{}"), ({}, "{}"), ('{"a": 1}', '{"a": 1}'), ([1], "[1]")]
)
def test_arguments_in_the_history_are_sent_as_text(arguments: Any, text: str) -> None:
    body = json.dumps({"model": "m", "x": 1.50, "messages": history(arguments)}).encode()
    changed = with_text_arguments(body)
    assert (changed is body) is isinstance(arguments, str)
    assert json.loads(changed) == {"model": "m", "x": 1.50, "messages": history(text)}


def test_a_parameter_with_the_name_arguments_is_left_alone() -> None:
    parameters = {"type": "object", "properties": {"arguments": {"type": "object"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    for messages in (history("{}"), [{"role": "user", "content": '{"arguments": {}}'}], "x", [3]):
        body = json.dumps({"messages": messages, "tools": [tool]}).encode()
        assert with_text_arguments(body) is body

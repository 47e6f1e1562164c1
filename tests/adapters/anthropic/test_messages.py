"""Anthropic's requests are decoded, rejected with the invalid field, and encoded for other backends."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from hostler.adapters.anthropic.adapter import AnthropicAdapter
from hostler.adapters.canonical import ChatMessage, ChatRequest, Conversation, Media, Text, ToolCall
from hostler.adapters.errors import BadRequest
from hostler.adapters.ollama.upstream import OllamaUpstream
from hostler.adapters.openai.upstream import OpenAIUpstream

Messages = Callable[..., ChatRequest]


@pytest.fixture
def messages(decode_request: Any) -> Messages:
    """A request with these messages, by default a plain one, and these fields."""

    def decode(*turns: dict[str, Any], **fields: Any) -> ChatRequest:
        content = list(turns) or [{"role": "user", "content": "Hi"}]
        request = decode_request("/v1/messages", {"model": "a", "max_tokens": 9, "messages": content, **fields})
        assert isinstance(request, ChatRequest)
        return request

    return decode


def conversation_of(request: Any) -> Conversation:
    assert request.conversation is not None
    conversation: Conversation = request.conversation
    return conversation


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def test_a_plain_request_is_decoded(messages: Messages) -> None:
    request = messages(stream=True, temperature=0.5, top_p=0.9, top_k=3, stop_sequences=["END"], system="Be brief")
    assert (request.model, request.output.stream) == ("a", True)
    conversation = conversation_of(request)
    assert conversation.messages == (
        ChatMessage(role="system", parts=(Text(text="Be brief"),)),
        ChatMessage(role="user", parts=(Text(text="Hi"),)),
    )
    sampling = conversation.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.5, 0.9, 3, 9)
    assert sampling.stop == ("END",)
    assert conversation.tool_choice is conversation.parallel_tool_calls is None


def test_a_request_of_claude_code_is_decoded(decode_request: Any, transcript: Any) -> None:
    request = decode_request(
        "/v1/messages",
        transcript("anthropic/claude-code.json"),
        query="beta=true",
        headers={
            "anthropic-version": "2023-06-01",
            "anthropic-beta": "claude-code-20250219,context-management-2025-06-27",
        },
    )
    conversation = conversation_of(request)
    system, question, response, listing, image, order = conversation.messages
    assert system.parts == (
        Text(text="You are Claude Code, Anthropic's official CLI for Claude.\n\nYou are an interactive agent."),
    )
    assert question.role == "user"
    assert question.parts == (
        Text(
            text="<system-reminder>\nThe project is called inn.\n</system-reminder>\nWhich files are here?\n"
            "<system-reminder>\nAgents: explore, plan\n</system-reminder>\n"
        ),
    )
    assert (response.reasoning, response.parts) == ("I list them.", (Text(text="Let me look."),))
    assert response.tool_calls == (
        ToolCall(index=0, id="toolu_01", name="Bash", arguments='{"command": "ls", "description": "List files"}'),
        ToolCall(index=1, id="toolu_02", name="Read", arguments='{"file_path": "/inn/map.png"}'),
    )
    assert (listing.role, listing.tool_call_id, listing.parts) == (
        "tool",
        "toolu_01",
        (Text(text="map.png\nstable.py"),),
    )
    assert (image.role, image.tool_call_id) == ("tool", "toolu_02")
    assert order.parts[1] == Media(kind="image", data="iVBORw0KGgo=", mime="image/png")
    assert order.parts[2] == Text(text="Now run the tests.")
    assert [tool.name for tool in conversation.tools] == ["Bash", "Read"]
    assert (conversation.thinking, conversation.sampling.max_tokens) == ("high", 32000)


def test_a_request_of_claude_code_is_encoded_for_an_openai_backend(decode_request: Any, transcript: Any) -> None:
    request = decode_request("/v1/messages", transcript("anthropic/claude-code.json"))
    sent = OpenAIUpstream().build(AnthropicAdapter().expand(request), model="qwen", stream=True)
    body = json.loads(sent.body)
    assert sent.path == "/v1/chat/completions"
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert body["messages"][2]["tool_calls"][0]["id"] == body["messages"][3]["tool_call_id"] == "toolu_01"
    assert body["tools"][0]["function"]["parameters"]["required"] == ["command"]
    assert body["parallel_tool_calls"] is True


def test_a_request_of_claude_code_is_encoded_for_an_ollama_backend(decode_request: Any, transcript: Any) -> None:
    request = decode_request("/v1/messages", transcript("anthropic/claude-code.json"))
    body = json.loads(OllamaUpstream().build(request, model="qwen", stream=True).body)
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert body["messages"][-1]["images"] == ["iVBORw0KGgo="]
    assert body["options"]["num_predict"] == 32000


@pytest.mark.parametrize(
    "system",
    [
        "x-anthropic-billing-header: cc_version=2.1.100.7b4; cch=eb6c6;\nBe brief",
        [text("x-anthropic-billing-header: cch=0aaa9;"), text("Be brief")],
    ],
)
def test_the_accounting_line_of_the_system_prompt_is_removed(messages: Messages, system: Any) -> None:
    assert conversation_of(messages(system=system)).messages[0].parts == (Text(text="Be brief"),)


def test_leading_system_messages_join_the_system_prompt(messages: Messages) -> None:
    turns = ({"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"})
    first, second = conversation_of(messages(*turns, system="Be brief")).messages
    assert (first.role, first.parts) == ("system", (Text(text="Be brief\n\nBe kind"),))
    assert second.role == "user"


def test_consecutive_messages_of_one_role_are_merged(messages: Messages) -> None:
    turns = [("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d"), ("system", "e"), ("user", "f")]
    content = conversation_of(messages(*({"role": role, "content": words} for role, words in turns))).messages
    assert [message.role for message in content] == ["user", "assistant", "user"]
    assert content[0].parts == (Text(text="a\nb"),)


def test_an_error_result_is_marked(messages: Messages) -> None:
    def result(words: str) -> str:
        block = {"type": "tool_result", "tool_use_id": "t", "content": words, "is_error": True}
        part = conversation_of(messages(user(block))).messages[0].parts[0]
        assert isinstance(part, Text)
        return part.text

    assert result("no such file") == "Error: no such file"
    assert result("<tool_use_error>no</tool_use_error>") == "<tool_use_error>no</tool_use_error>"


@pytest.mark.parametrize("content", [None, "", []])
def test_a_tool_result_may_be_empty(messages: Messages, content: Any) -> None:
    message = conversation_of(messages(user({"type": "tool_result", "tool_use_id": "t", "content": content}))).messages[
        0
    ]
    assert (message.role, message.tool_call_id) == ("tool", "t")


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        ({"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}, (Media(kind="image", url="http://x/y.png"),)),
        ({"type": "document", "title": "T", "source": {"type": "text", "data": "words"}}, (Text(text="T\nwords"),)),
        ({"type": "document", "source": {"type": "content", "content": [text("words")]}}, (Text(text="words"),)),
        ({"type": "search_result", "title": "T", "source": "http://x", "content": [text("words")]}, (Text(text="T\nhttp://x\nwords"),)),
        ({"type": "web_search_tool_result", "tool_use_id": "s", "content": {"error_code": "unavailable"}}, ()),
    ],
)  # fmt: skip
def test_each_type_of_block_is_decoded(messages: Messages, block: dict[str, Any], parts: tuple[Any, ...]) -> None:
    assert conversation_of(messages(user(block))).messages[0].parts == parts


@pytest.mark.parametrize(
    ("choice", "wanted", "parallel"),
    [
        ({"type": "auto"}, "auto", True),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "tool", "name": "look"}, "look", True),
        ({"type": "none"}, "none", True),
    ],
)
def test_tool_choices_are_translated(messages: Messages, choice: Any, wanted: str, parallel: bool) -> None:
    conversation = conversation_of(messages(tools=[{"name": "look", "input_schema": {}}], tool_choice=choice))
    assert (conversation.tool_choice, conversation.parallel_tool_calls) == (wanted, parallel)


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({}, False),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, True),
        ({"thinking": {"type": "adaptive"}}, True),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "high"),
    ],
)
def test_thinking_is_off_unless_requested(messages: Messages, fields: dict[str, Any], thinking: bool | str) -> None:
    assert conversation_of(messages(**fields)).thinking == thinking


def test_an_output_format_is_decoded(messages: Messages) -> None:
    wanted = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    assert json.loads(bytes(messages(output_config=wanted).output.schema or b"")) == {"type": "object"}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": None}, "messages", "array"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages.0.content", "Expected"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages.0.role", "user, assistant"),
        ({"max_tokens": -1}, "max_tokens", "0 or more"),
        ({"max_tokens": "9"}, "max_tokens", "Expected"),
        ({"stream": "yes"}, "stream", "Expected"),
        ({"tools": [{"name": "a"}], "tool_choice": {"type": "tool"}}, "tool_choice.name", "required"),
        ({"tools": [{"name": "a"}], "tool_choice": {"type": "maybe"}}, "tool_choice.type", "auto"),
    ],
)  # fmt: skip
def test_an_invalid_field_is_named(messages: Messages, fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words) as caught:
        messages(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model":"a"}', b'{"messages":[],"messages":[]}', b"\xff"])
def test_an_invalid_body_is_rejected(decode_request: Any, body: bytes) -> None:
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        with pytest.raises(BadRequest):
            decode_request(path, body)


def test_the_gateways_progress_in_earlier_answers_is_removed(messages: Messages) -> None:
    """A client may have got it in another protocol."""
    shown = "[hostler] loading b: 40% (12 s left)\n"
    blocks = [
        {"type": "thinking", "thinking": shown + "Hm.", "signature": ""},
        {"type": "text", "text": f"<think>{shown}</think>Hi"},
    ]
    turns = [
        {"role": "user", "content": shown},
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": "b"},
    ]
    user, assistant, _ = conversation_of(messages(messages=turns)).messages
    assert user.parts == (Text(text=shown),)
    assert (assistant.reasoning, assistant.parts) == ("Hm.", (Text(text="Hi"),))

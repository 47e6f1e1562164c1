"""Custom tools of chats: forwarded to servers that know them, as functions with one string to all others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from hostler.adapters import sse
from hostler.adapters.anthropic.upstream import AnthropicUpstream
from hostler.adapters.base import Incoming, Upstream
from hostler.adapters.canonical import ChatRequest, Chunk, ResponseHead, ToolCall
from hostler.adapters.errors import BackendRejected
from hostler.adapters.ollama.upstream import OllamaUpstream
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.openai.custom_tools import as_arguments
from hostler.adapters.openai.upstream import OpenAIUpstream

PATCH = '*** Begin Patch\n*** Update File: a.py\n-"x"\n+"\\ü😀"\n*** End Patch\n'
GRAMMAR = 'start: "*** Begin Patch"'
CHAT_HISTORY = [
    {"role": "user", "content": "Fix it."},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "custom", "custom": {"name": "apply_patch", "input": PATCH}},
        {"id": "c2", "type": "function", "function": {"name": "shell", "arguments": '{"a": 1}'}},
    ]},
    {"role": "tool", "tool_call_id": "c1", "content": "Done."},
    {"role": "tool", "tool_call_id": "c2", "content": "ok"},
]  # fmt: skip
CHAT_GRAMMAR = {"type": "grammar", "grammar": {"syntax": "lark", "definition": GRAMMAR}}
CHAT_TOOLS = [
    {"type": "custom", "custom": {"name": "apply_patch", "description": "Edit files.", "format": CHAT_GRAMMAR}},
    {"type": "function", "function": {"name": "shell", "parameters": {"type": "object"}}},
]


def requested_chat(**body: Any) -> ChatRequest:
    operation = next(each for each in OpenAIAdapter().operations if each.path == "/v1/chat/completions")
    content = json.dumps({"model": "m", "messages": CHAT_HISTORY, "tools": CHAT_TOOLS, **body}).encode()
    request = OpenAIAdapter().decode(operation, Incoming(method="POST", path=operation.path, body=content))
    assert isinstance(request, ChatRequest)
    return request


def sent_chat(upstream: Upstream, **body: Any) -> dict[str, Any]:
    request = requested_chat(**body)
    known = request if upstream.speaks(request.origin.wire) else OpenAIAdapter().expand(request)
    content: dict[str, Any] = json.loads(upstream.build(known, model="there", stream=True).body)
    return content


def answered_chat(pieces: list[str], *, stream: bool, name: str = "apply_patch") -> bytes:
    encoder = OpenAIAdapter().encoder(requested_chat(stream=stream), response_id="req-1", created=17, progress="off")
    encoder.start(ResponseHead(media_type="text/event-stream"))
    first = Chunk(wire="openai", tool_calls=(ToolCall(index=0, id="c2", name=name, arguments=""),))
    rest = [Chunk(wire="openai", tool_calls=(ToolCall(index=0, arguments=piece),)) for piece in pieces]
    chunks = [first, *rest, Chunk(wire="openai", finish="tool_calls")]
    return b"".join([*map(encoder.encode, chunks), encoder.finish()])


def deltas_of(data: bytes) -> list[dict[str, Any]]:
    found = [json.loads(content) for _, content in sse.EventReader().feed(data) if content != b"[DONE]"]
    return [call for event in found for call in event["choices"][0]["delta"].get("tool_calls", ())]


def test_a_chat_with_custom_tools_is_forwarded_to_servers_of_openais_protocol() -> None:
    assert sent_chat(OpenAIUpstream())["tools"] == CHAT_TOOLS
    assert sent_chat(OpenAIUpstream())["messages"] == CHAT_HISTORY


def test_a_chats_custom_tool_is_a_function_with_one_string_for_engines() -> None:
    body = sent_chat(OpenAIUpstream(engine=True), tool_choice={"type": "custom", "custom": {"name": "apply_patch"}})
    patch, shell = (tool["function"] for tool in body["tools"])
    assert (patch["name"], shell["name"]) == ("apply_patch", "shell")
    assert GRAMMAR in patch["description"]
    assert patch["parameters"]["required"] == ["input"]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "apply_patch"}}


def test_the_history_of_a_chats_custom_tool_is_understood_by_backends_of_every_protocol() -> None:
    first, second = sent_chat(OpenAIUpstream(engine=True))["messages"][1]["tool_calls"]
    assert json.loads(first["function"]["arguments"]) == {"input": PATCH}
    assert (second["id"], second["function"]["name"]) == ("c2", "shell")
    messages = sent_chat(AnthropicUpstream())["messages"]
    assert messages[1]["content"][0]["input"] == {"input": PATCH}
    assert [part["tool_use_id"] for part in messages[2]["content"]] == ["c1", "c2"]
    ollama = sent_chat(OllamaUpstream())["messages"]
    assert ollama[1]["tool_calls"][0]["function"]["arguments"] == {"input": PATCH}


def test_calls_of_the_history_alone_are_enough() -> None:
    assert not OpenAIUpstream(engine=True).speaks(requested_chat(tools=CHAT_TOOLS[1:]).origin.wire)
    plain = [{"role": "user", "content": 'type "custom"'}]
    assert OpenAIUpstream(engine=True).speaks(requested_chat(tools=CHAT_TOOLS[1:], messages=plain).origin.wire)
    enum = {"type": "function", "function": {"name": "f", "parameters": {"enum": ["custom"]}}}
    assert OpenAIUpstream(engine=True).speaks(requested_chat(tools=[enum], messages=plain).origin.wire)


@pytest.mark.parametrize(
    ("choice", "names", "sent"),
    [
        (
            {"mode": "required", "tools": [{"type": "custom", "custom": {"name": "apply_patch"}}]},
            ["apply_patch"],
            "required",
        ),
        ({"mode": "auto", "tools": [{"type": "function", "function": {"name": "shell"}}]}, ["shell"], "auto"),
    ],
)
def test_a_choice_among_some_tools_leaves_these(choice: dict[str, Any], names: list[str], sent: str) -> None:
    body = sent_chat(OpenAIUpstream(engine=True), tool_choice={"type": "allowed_tools", "allowed_tools": choice})
    assert [tool["function"]["name"] for tool in body["tools"]] == names
    assert body["tool_choice"] == sent


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_a_chats_call_streams_as_the_text_that_the_tool_is_for(size: int) -> None:
    arguments = as_arguments(PATCH)
    pieces = [arguments[at : at + size] for at in range(0, len(arguments), size)]
    first, *rest = deltas_of(answered_chat(pieces, stream=True))
    assert (first["index"], first["id"], first["type"]) == (0, "c2", "custom")
    assert first["custom"] == {"name": "apply_patch", "input": ""}
    assert "".join(call["custom"]["input"] for call in rest) == PATCH
    assert all(call["index"] == 0 and "function" not in call for call in rest)


def test_a_chats_call_with_other_arguments_comes_with_the_finish_reason() -> None:
    _, last = deltas_of(answered_chat(['{"patch":', ' "a"}'], stream=True))
    assert last == {"index": 0, "custom": {"input": "a"}}


def test_a_chats_call_is_turned_back_in_a_whole_response() -> None:
    answer = ChatCompletion.model_validate_json(answered_chat([as_arguments(PATCH)], stream=False))
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "custom"
    assert (call.id, call.custom.name, call.custom.input) == ("c2", "apply_patch", PATCH)
    answer = ChatCompletion.model_validate_json(answered_chat(['{"a":1}'], stream=False, name="shell"))
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function" and call.function.arguments == '{"a":1}'


@pytest.mark.parametrize("status", [400, 422])
def test_a_backend_that_rejects_a_chats_custom_tools_gets_functions(status: int) -> None:
    words = b'{"error": {"message": "tools[0].type: input should be \'function\'"}}'
    rejected = BackendRejected("no", backend="b", wire="openai", backend_status=status, headers={}, body=words)
    amended = OpenAIAdapter().amend(requested_chat(), rejected)
    assert amended is not None
    assert not OpenAIUpstream().speaks(amended.origin.wire)
    body = json.loads(OpenAIUpstream().build(amended, model="there", stream=False).body)
    assert [tool["function"]["name"] for tool in body["tools"]] == ["apply_patch", "shell"]
    missing = BackendRejected("no", backend="b", wire="openai", backend_status=404, headers={}, body=b"not found")
    assert OpenAIAdapter().amend(requested_chat(), missing) is None


def custom_events() -> list[bytes]:
    frame = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "there"}
    head = {"index": 0, "id": "c2", "type": "custom", "custom": {"name": "apply_patch", "input": ""}}
    calls = [head, {"index": 0, "custom": {"input": PATCH[:9]}}, {"index": 0, "custom": {"input": PATCH[9:]}}]
    deltas = [{"role": "assistant", "content": None}, *({"tool_calls": [call]} for call in calls)]
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
    return [sse.event(json.dumps({**frame, "choices": [choice]}).encode()) for choice in choices] + [
        b"data: [DONE]\n\n"
    ]


@pytest.mark.parametrize("stream", [True, False])
def test_the_calls_of_a_server_that_knows_custom_tools_are_passed_on(stream: bool) -> None:
    request = requested_chat(stream=stream)
    parser = OpenAIUpstream().parser(request, fields=False)
    encoder = OpenAIAdapter().encoder(request, response_id="req-1", created=17, progress="off")
    parser.start(ResponseHead(media_type="text/event-stream"))
    encoder.start(ResponseHead(media_type="text/event-stream"))
    chunks = [chunk for event in custom_events() for chunk in parser.feed(event)]
    answer = b"".join([*map(encoder.encode, chunks), encoder.finish()])
    if stream:
        assert answer == b"".join(custom_events())
        return
    (call,) = ChatCompletion.model_validate_json(answer).choices[0].message.tool_calls or []
    assert call.type == "custom" and (call.custom.name, call.custom.input) == ("apply_patch", PATCH)


def test_a_whole_answer_with_such_calls_becomes_a_stream() -> None:
    request = requested_chat(stream=True)
    parser = OpenAIUpstream().parser(request, fields=False)
    encoder = OpenAIAdapter().encoder(request, response_id="req-1", created=17, progress="off")
    custom = {"id": "c2", "type": "custom", "custom": {"name": "apply_patch", "input": PATCH}}
    message = {"role": "assistant", "content": None, "tool_calls": [custom]}
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [
        {"index": 0, "message": message, "finish_reason": "tool_calls"}
    ]}  # fmt: skip
    for each in (parser, encoder):
        each.start(ResponseHead(media_type="application/json"))
    chunks = [*parser.feed(json.dumps(body).encode()), *parser.finish()]
    assert deltas_of(b"".join([*map(encoder.encode, chunks), encoder.finish()])) == [{**custom, "index": 0}]

"""Tools in namespaces, as Codex sends those of MCP servers: functions for the model, and the client's own names in the answer."""

from __future__ import annotations

import json
from typing import Any

import pydantic
import pytest
from fakes.responses_requests import responses_request, sent_as_chat
from openai.types.responses import Response, ResponseStreamEvent

from hostler.adapters import sse
from hostler.adapters.anthropic.upstream import AnthropicUpstream
from hostler.adapters.base import Upstream
from hostler.adapters.canonical import ChatRequest, Chunk, ResponseHead, ToolCall
from hostler.adapters.errors import BackendRejected
from hostler.adapters.ollama.upstream import OllamaUpstream
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.openai.responses_tools import callable_name
from hostler.adapters.openai.upstream import OpenAIUpstream

SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}}
LOOK = {"type": "function", "name": "look", "description": "Look.", "parameters": SCHEMA, "strict": False}
EDIT = {"type": "custom", "name": "edit", "description": "Edit."}
FILES = {"type": "namespace", "name": "mcp__files", "description": "Files of the machine.", "tools": [LOOK, EDIT]}
WEB = {"type": "namespace", "name": "web.pages", "description": "Pages.", "tools": [LOOK]}
SHELL = {"type": "function", "name": "look", "parameters": {"type": "object"}}
CALL = {
    "type": "function_call",
    "call_id": "c1",
    "namespace": "mcp__files",
    "name": "look",
    "arguments": '{"path":"a"}',
}
HISTORY = [
    {"role": "user", "content": "Look."},
    CALL,
    {"type": "function_call_output", "call_id": "c1", "namespace": "mcp__files", "name": "look", "output": "42"},
]
EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)
in_every_protocol = pytest.mark.parametrize(
    "upstream",
    [OpenAIUpstream(engine=True), AnthropicUpstream(), OllamaUpstream()],
    ids=["openai", "anthropic", "ollama"],
)


def requested(**body: Any) -> ChatRequest:
    return responses_request(**{"input": HISTORY, "tools": [SHELL, FILES, WEB, {"type": "web_search"}], **body})


def sent(upstream: Upstream, **body: Any) -> dict[str, Any]:
    return sent_as_chat(upstream, requested(**body))


def answered(name: str, arguments: str, *, stream: bool, **body: Any) -> bytes:
    encoder = OpenAIAdapter().encoder(requested(stream=stream, **body), response_id="req-1", created=17, progress="off")
    encoder.start(ResponseHead(media_type="text/event-stream"))
    call = ToolCall(index=0, id="c2", name=name, arguments=arguments)
    return b"".join([*map(encoder.encode, (Chunk(tool_calls=(call,)), Chunk(finish="tool_calls"))), encoder.finish()])


def names(body: dict[str, Any]) -> list[str]:
    return [tool.get("function", tool)["name"] for tool in body["tools"]]


@in_every_protocol
def test_the_tools_of_a_namespace_are_functions_with_names_of_their_own(upstream: Upstream) -> None:
    body = sent(upstream)
    plain, look, edit, other = names(body)
    assert (plain, look, edit) == ("look", "mcp__files__look", "mcp__files__edit")
    assert other.startswith("web_pages__look_"), "servers accept no dots"
    assert "path" in json.dumps(body["tools"][1])


def test_the_history_names_a_tool_as_the_model_has_called_it() -> None:
    call = sent(OpenAIUpstream(engine=True))["messages"][1]["tool_calls"][0]
    assert (call["id"], call["function"]["name"]) == ("c1", "mcp__files__look")
    choice = {"type": "function", "namespace": "mcp__files", "name": "look"}
    body = sent(OpenAIUpstream(engine=True), tool_choice=choice)
    assert body["tool_choice"]["function"]["name"] == "mcp__files__look"


@pytest.mark.parametrize(
    ("called", "kind", "name", "namespace"),
    [
        ("mcp__files__look", "function_call", "look", "mcp__files"),
        ("mcp__files__edit", "custom_tool_call", "edit", "mcp__files"),
        (callable_name("look", "web.pages"), "function_call", "look", "web.pages"),
        ("look", "function_call", "look", None),
        ("unknown", "function_call", "unknown", None),
    ],
)
def test_a_call_reaches_the_client_with_the_tools_name_and_namespace(
    called: str, kind: str, name: str, namespace: str | None
) -> None:
    arguments = '{"input":"x"}' if kind == "custom_tool_call" else '{"path":"b"}'
    whole = Response.model_validate_json(answered(called, arguments, stream=False))
    streamed = [
        EVENT.validate_json(content) for _, content in sse.EventReader().feed(answered(called, arguments, stream=True))
    ]
    added = next(event.item for event in streamed if event.type == "response.output_item.added")
    for item in (*whole.output, added, streamed[-1].response.output[0]):
        assert (item.type, item.name, item.namespace, item.call_id) == (kind, name, namespace, "c2")


SEARCH = {
    "type": "tool_search",
    "execution": "client",
    "description": "Find tools.",
    "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
}
SEARCHED = {"type": "tool_search_call", "call_id": "s1", "execution": "client", "arguments": {"query": "files"}}
FOUND = {"type": "tool_search_output", "call_id": "s1", "execution": "client", "status": "completed", "tools": [FILES]}


@pytest.mark.parametrize(
    "items",
    [[{"type": "additional_tools", "role": "developer", "tools": [FILES]}], [SEARCHED, FOUND]],
    ids=["additional", "found"],
)
def test_tools_that_the_history_declares_can_be_called(items: list[dict[str, Any]]) -> None:
    declared = {"input": [{"role": "user", "content": "Look."}, *items], "tools": [SHELL]}
    assert names(sent(OpenAIUpstream(engine=True), **declared)) == ["look", "mcp__files__look", "mcp__files__edit"]
    (call,) = Response.model_validate_json(answered("mcp__files__look", "{}", stream=False, **declared)).output
    assert call.type == "function_call"
    assert (call.name, call.namespace) == ("look", "mcp__files")


def test_a_search_for_tools_by_the_client_is_a_function() -> None:
    body = sent(OpenAIUpstream(engine=True), tools=[SEARCH, SHELL], input=[*HISTORY, SEARCHED, FOUND])
    assert names(body)[:2] == ["tool_search", "look"]
    assert body["tools"][0]["function"]["parameters"] == SEARCH["parameters"]
    asked, found = body["messages"][-2:]
    assert asked["tool_calls"][0]["function"] == {"name": "tool_search", "arguments": '{"query":"files"}'}
    assert (found["role"], found["tool_call_id"]) == ("tool", "s1")
    assert "mcp__files__look, mcp__files__edit" in found["content"]


@pytest.mark.parametrize(("arguments", "read"), [('{"query":"files"}', {"query": "files"}), ("", {}), ("[1]", {})])
def test_a_models_search_reaches_the_client_as_one(arguments: str, read: dict[str, Any]) -> None:
    whole = Response.model_validate_json(answered("tool_search", arguments, stream=False, tools=[SEARCH]))
    data = answered("tool_search", arguments, stream=True, tools=[SEARCH])
    streamed = [EVENT.validate_json(content) for _, content in sse.EventReader().feed(data)]
    assert [event.type for event in streamed] == [
        *("response.created", "response.in_progress", "response.output_item.added", "response.output_item.done"),
        "response.completed",
    ]
    for item in (whole.output[0], streamed[3].item, streamed[-1].response.output[0]):
        assert (item.type, item.call_id, item.execution, item.arguments) == ("tool_search_call", "c2", "client", read)


def test_a_search_that_the_server_carries_out_is_none_for_other_models() -> None:
    hosted = [{**item, "execution": "server", "call_id": None} for item in (SEARCHED, FOUND)]
    body = sent(OpenAIUpstream(engine=True), tools=[{"type": "tool_search"}, SHELL], input=[*HISTORY, *hosted])
    assert names(body) == ["look", "mcp__files__look", "mcp__files__edit"]
    assert body["messages"][-1]["content"] == "42"


def test_names_stay_short_and_apart() -> None:
    long = [callable_name("x" * length, "n") for length in (80, 81)]
    assert all(len(name) <= 64 for name in long) and long[0] != long[1]
    assert callable_name("look", "mcp__files__") == "mcp__files__look"
    assert callable_name("any.name at all", None) == "any.name at all"


@pytest.mark.parametrize("tools", [[SHELL, FILES], [SHELL, SEARCH]], ids=["namespaces", "search"])
def test_a_backend_that_rejects_such_tools_gets_a_chat(tools: list[Any]) -> None:
    words = b'{"error": {"message": "tools[1].type: expected function", "param": "tools"}}'
    rejected = BackendRejected("no", backend="b", wire="openai", backend_status=400, headers={}, body=words)
    amended = OpenAIAdapter().amend(requested(tools=tools, input="Look."), rejected)
    assert amended is not None
    body = json.loads(OpenAIUpstream().build(amended, model="there", stream=False).body)
    assert names(body)[1] == ("mcp__files__look" if FILES in tools else "tool_search")


def test_a_server_of_the_same_protocol_gets_namespaces_as_they_are() -> None:
    body = json.loads(OpenAIUpstream().build(requested(), model="there", stream=False).body)
    assert body["tools"][1:3] == [FILES, WEB]

"""Custom tools as functions with one string, and their calls turned back."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pydantic
import pytest
from fakes.responses_requests import responses_request, sent_as_chat
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent

from hostler.adapters import sse
from hostler.adapters.anthropic.upstream import AnthropicUpstream
from hostler.adapters.base import Upstream
from hostler.adapters.canonical import ChatRequest, Chunk, ResponseHead, ToolCall
from hostler.adapters.errors import BackendRejected
from hostler.adapters.ollama.upstream import OllamaUpstream
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.openai.custom_tools import InputReader, as_arguments, as_input
from hostler.adapters.openai.upstream import OpenAIUpstream

PATCH = '*** Begin Patch\n*** Update File: a.py\n-"x"\n+"\\ü😀"\n*** End Patch\n'
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin Patch"'}
APPLY_PATCH = {"type": "custom", "name": "apply_patch", "description": "Edit files.", "format": GRAMMAR}
SHELL = {"type": "function", "name": "shell", "parameters": {"type": "object"}, "strict": False}
HISTORY = [
    {"role": "user", "content": "Fix it."},
    {"type": "custom_tool_call", "id": "ctc_1", "call_id": "c1", "name": "apply_patch", "input": PATCH},
    {"type": "custom_tool_call_output", "call_id": "c1", "output": "Done."},
]
EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)


def requested(**body: Any) -> ChatRequest:
    return responses_request(**{"input": HISTORY, "tools": [APPLY_PATCH, SHELL], **body})


def sent(upstream: Upstream, **body: Any) -> dict[str, Any]:
    return sent_as_chat(upstream, requested(**body))


def answered(pieces: list[str], *, stream: bool, name: str = "apply_patch") -> bytes:
    request = requested(stream=stream)
    encoder = OpenAIAdapter().encoder(request, response_id="req-1", created=17, progress="off")
    encoder.start(ResponseHead(media_type="text/event-stream"))
    first = Chunk(tool_calls=(ToolCall(index=0, id="c2", name=name, arguments=""),))
    rest = [Chunk(tool_calls=(ToolCall(index=0, arguments=piece),)) for piece in pieces]
    chunks = [first, *rest, Chunk(finish="tool_calls")]
    return b"".join([*map(encoder.encode, chunks), encoder.finish()])


def events(data: bytes) -> list[Any]:
    return [EVENT.validate_json(content) for _, content in sse.EventReader().feed(data)]


def test_a_custom_tool_is_a_function_with_one_string_for_a_chat() -> None:
    body = sent(OpenAIUpstream(engine=True), tool_choice={"type": "custom", "name": "apply_patch"})
    patch, shell = (tool["function"] for tool in body["tools"])
    assert (patch["name"], shell["name"]) == ("apply_patch", "shell")
    assert patch["description"].startswith("Edit files.")
    assert GRAMMAR["definition"] in patch["description"]
    assert patch["parameters"]["required"] == ["input"]
    assert patch["parameters"]["properties"]["input"]["type"] == "string"
    assert body["tool_choice"] == {"type": "function", "function": {"name": "apply_patch"}}


def test_the_history_of_a_custom_tool_is_understood_by_backends_of_every_protocol() -> None:
    chat = sent(OpenAIUpstream(engine=True))["messages"]
    assert json.loads(chat[1]["tool_calls"][0]["function"]["arguments"]) == {"input": PATCH}
    assert (chat[2]["role"], chat[2]["tool_call_id"], chat[2]["content"]) == ("tool", "c1", "Done.")
    messages = sent(AnthropicUpstream())["messages"]
    assert messages[1]["content"][0] == {
        "type": "tool_use", "id": "c1", "name": "apply_patch", "input": {"input": PATCH}
    }  # fmt: skip
    assert messages[2]["content"][0]["tool_use_id"] == "c1"
    ollama = sent(OllamaUpstream())["messages"]
    assert ollama[1]["tool_calls"][0]["function"]["arguments"] == {"input": PATCH}


@pytest.mark.parametrize("size", [1, 2, 5, 7, 1000])
def test_a_call_streams_as_the_text_that_the_tool_is_for(size: int) -> None:
    arguments = as_arguments(PATCH)
    pieces = [arguments[at : at + size] for at in range(0, len(arguments), size)]
    happened = events(answered(pieces, stream=True))
    kinds = [event.type for event in happened]
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-3:] == [
        "response.custom_tool_call_input.done", "response.output_item.done", "response.completed"
    ]  # fmt: skip
    deltas = [event.delta for event in happened if event.type == "response.custom_tool_call_input.delta"]
    assert "".join(deltas) == PATCH
    assert len(deltas) > 1 or size == 1000
    assert happened[-3].input == PATCH
    (call,) = happened[-1].response.output
    assert (call.type, call.name, call.call_id, call.input) == ("custom_tool_call", "apply_patch", "c2", PATCH)


def test_a_call_is_turned_back_in_a_whole_response() -> None:
    response = Response.model_validate_json(answered([as_arguments(PATCH)], stream=False))
    (call,) = response.output
    assert call.type == "custom_tool_call"
    assert (call.name, call.call_id, call.input) == ("apply_patch", "c2", PATCH)


def test_a_function_beside_a_custom_tool_stays_one() -> None:
    response = Response.model_validate_json(answered(['{"a":1}'], stream=False, name="shell"))
    (call,) = response.output
    assert call.type == "function_call"
    assert call.arguments == '{"a":1}'


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"input":"a"}', "a"), ('{"patch":"a"}', "a"), ('"a\\n"', "a\n"), ("*** Begin", "*** Begin"), ("{}", "{}"),
        ('{"reason":"r","input":"a"}', "a"), ('{"input":1}', '{"input":1}'), ('{"input":"\\ud83d"}', "\ufffd"),
        ('{ "input" : "\\u00fc\\/" }', "ü/"), ('{"input":"cut off', "cut off"), ('{"input":"a\\q"}', "a"), ("", ""),
    ],
)  # fmt: skip
def test_what_models_send_instead_of_the_arguments_is_read(arguments: str, read: str) -> None:
    reader = InputReader()
    assert "".join([*map(reader.feed, arguments), reader.finish()]) == read


@given(text=st.text(), cuts=st.lists(st.integers(0, 60), max_size=5), ascii_only=st.booleans())
def test_any_text_is_read_wherever_its_arguments_are_cut(text: str, cuts: list[int], ascii_only: bool) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=ascii_only)
    marks = sorted({0, *(cut for cut in cuts if cut < len(arguments)), len(arguments)})
    reader = InputReader()
    pieces = [reader.feed(arguments[start:end]) for start, end in pairwise(marks)]
    assert "".join([*pieces, reader.finish()]) == text
    assert as_input(as_arguments(text)) == text


@pytest.mark.parametrize("status", [400, 422])
def test_a_backend_that_rejects_custom_tools_gets_a_chat(status: int) -> None:
    words = b'{"error": {"message": "tools[0]: unsupported tool type custom", "param": "tools"}}'
    rejected = BackendRejected("no", backend="b", wire="openai", backend_status=status, headers={}, body=words)
    amended = OpenAIAdapter().amend(requested(), rejected)
    assert amended is not None
    body = json.loads(OpenAIUpstream().build(amended, model="there", stream=False).body)
    assert [tool["function"]["name"] for tool in body["tools"]] == ["apply_patch", "shell"]
    assert OpenAIAdapter().amend(requested(tools=[SHELL], input="x"), rejected) is None

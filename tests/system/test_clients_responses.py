"""OpenAI's responses against every kind of backend, as OpenAI's own package reads them.

The scripted backends know chats only. One of OpenAI's kind is asked for a response first, and for a chat when it has none.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from fakes.scripted_server import ScriptedAnswer, ScriptedServer, start_scripted_server
from openai.types.responses import Response
from system.fallback_chain import start_chain
from system.running_gateway import StartGateway

pytestmark = pytest.mark.anyio

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [
    {"type": "function", "name": "weather", "description": "Current weather", "parameters": SCHEMA, "strict": True},
    {"type": "web_search"},
]
CONVERSATION: list[Any] = [
    {"role": "developer", "content": "In German."},
    {"role": "user", "content": "Weather?"},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Ask."}]},
    {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
     "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
    {"type": "function_call", "call_id": "call_0", "name": "weather", "arguments": '{"city": "Bern"}'},
    {"type": "function_call_output", "call_id": "call_0", "output": "rain"},
    {"role": "user", "content": [
        {"type": "input_text", "text": "And here?"},
        {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=", "detail": "auto"},
    ]},
]  # fmt: skip
STORIES = {
    "plain": ScriptedAnswer(),
    "thoughtful": ScriptedAnswer(thoughts=("Hm, ", "Zürich?")),
    "calling": ScriptedAnswer(
        thoughts=("Look.",), calls=(("call_1", "weather", '{"city": "Zürich"}'), ("call_2", "now", "{}")),
        finish="tool_calls",
    ),
    "calling only": ScriptedAnswer(words=(), calls=(("call_1", "weather", '{"city": "Zürich"}'),), finish="tool_calls"),
    "cut": ScriptedAnswer(finish="length"),
}  # fmt: skip

each_backend = pytest.mark.parametrize("backend", ["llamacpp", "openai", "ollama", "anthropic"])
each_story = pytest.mark.parametrize("name", STORIES)


@asynccontextmanager
async def meeting(tmp_path: Path, kind: str) -> AsyncIterator[tuple[ScriptedServer, openai.AsyncOpenAI]]:
    """OpenAI's package before a gateway before a scripted backend of this kind, which calls the model `m` `there`."""
    async with start_scripted_server() as server:
        backend = {"kind": kind, "url": server.url, "models": {"m": "there"}}
        async with start_chain(tmp_path, {"there": backend}) as chain:
            address = f"{chain.http.base_url}/v1"
            async with openai.AsyncOpenAI(base_url=address, api_key="unused", max_retries=0) as client:
                yield server, client


def understood(answer: Response) -> tuple[str, str, list[tuple[str, str, Any]]]:
    """The words, the thoughts and the calls."""
    thoughts = [item for item in answer.output if item.type == "reasoning"]
    calls = [item for item in answer.output if item.type == "function_call"]
    reasoning = "".join(part.text for item in thoughts for part in item.content or [])
    return answer.output_text, reasoning, [(call.call_id, call.name, json.loads(call.arguments)) for call in calls]


def meant(story: ScriptedAnswer, backend: str) -> tuple[str, str, list[tuple[str, str, Any]]]:
    """What is to be understood of a story. Ollama's calls have no ids: they are made up."""
    return (
        "".join(story.words),
        "".join(story.thoughts),
        [(call if backend != "ollama" else "", name, json.loads(given)) for call, name, given in story.calls],
    )


def comparable(said: tuple[str, str, list[tuple[str, str, Any]]], backend: str) -> Any:
    words, thoughts, calls = said
    assert all(call for call, _, _ in calls)
    return words, thoughts, [("" if backend == "ollama" else call, name, given) for call, name, given in calls]


@each_backend
@each_story
async def test_a_whole_response(tmp_path: Path, backend: str, name: str) -> None:
    async with meeting(tmp_path, backend) as (server, client):
        server.answer = STORIES[name]
        answer = await client.responses.create(model="m", input="Hello", tools=TOOLS, metadata={"a": "b"})
    assert comparable(understood(answer), backend) == meant(STORIES[name], backend)
    cut = name == "cut"
    assert answer.status == ("incomplete" if cut else "completed")
    assert (answer.incomplete_details is not None and answer.incomplete_details.reason) == (cut and "max_output_tokens")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (21, 9, 30)
    assert (answer.model, answer.metadata, answer.object, len(answer.tools)) == ("m", {"a": "b"}, "response", 2)


@each_backend
@each_story
async def test_openais_helper_accumulates_a_streamed_response(tmp_path: Path, backend: str, name: str) -> None:
    story = STORIES[name]
    async with meeting(tmp_path, backend) as (server, client):
        server.answer = story
        events = [event async for event in await client.responses.create(model="m", input="Hello", stream=True)]
        if story.finish != "length":  # of which the helper makes no answer, wherever it comes from
            async with client.responses.stream(model="m", input="Hello") as stream:
                final = await stream.get_final_response()
            assert comparable(understood(final), backend) == meant(story, backend)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    last = events[-1]
    assert last.type == ("response.incomplete" if name == "cut" else "response.completed")
    assert comparable(understood(last.response), backend) == meant(story, backend)
    assert (
        kinds.count("response.output_item.added")
        == kinds.count("response.output_item.done")
        == len(last.response.output)
    )
    words = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(words) == "".join(story.words)
    arguments = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert [json.loads(part) for part in _apart("".join(arguments))] == [json.loads(each[2]) for each in story.calls]


def _apart(text: str) -> list[str]:
    """JSON objects that stand one after the other."""
    return [part + "}" for part in text.split("}") if part]


@each_backend
async def test_a_conversation_is_translated(tmp_path: Path, backend: str) -> None:
    async with meeting(tmp_path, backend) as (server, client):
        await client.responses.create(
            model="m", input=CONVERSATION, instructions="Be brief.", tools=TOOLS, tool_choice="auto",
            max_output_tokens=77, temperature=0.5, reasoning={"effort": "low"},
        )  # fmt: skip
    sent = json.dumps(server.requests[-1][1], ensure_ascii=False)
    for words in ("Be brief.", "In German.", "Weather?", "I look.", "Bern", "rain", "And here?", "iVBORw0KGgo=", "77"):
        assert words in sent, words
    assert sent.count("Current weather") == 1
    assert "web_search" not in sent
    assert [path for path, _ in server.requests[:-1]] == (["/v1/responses"] if backend == "openai" else [])


@each_backend
async def test_stored_responses_are_rejected_with_an_explanation(tmp_path: Path, backend: str) -> None:
    async with meeting(tmp_path, backend) as (_, client):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="m", input="And then?", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"


@each_backend
async def test_an_error_and_a_broken_stream_are_reported(tmp_path: Path, backend: str) -> None:
    async with meeting(tmp_path, backend) as (server, client):
        server.answer = ScriptedAnswer(error=(400, "too many umlauts"))
        with pytest.raises(openai.BadRequestError, match="too many umlauts"):
            await client.responses.create(model="m", input="Hello")
        server.answer = ScriptedAnswer(breaks="the mountain moved")
        events = [event async for event in await client.responses.create(model="m", input="Hello", stream=True)]
    words = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert words.startswith("The capital")
    last = events[-1]
    assert last.type == "error"
    assert "broke off its answer" in last.message
    assert last.sequence_number == len(events) - 1


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_server_with_a_responses_route_gets_the_request_unchanged(tmp_path: Path, stream: bool) -> None:
    async with meeting(tmp_path, "openai") as (server, client):
        server.has_responses = True
        asked: dict[str, Any] = {"model": "m", "input": "Hello", "store": True, "extra_body": {"next_month": 1}}
        if stream:
            events = [event async for event in await client.responses.create(stream=True, **asked)]
            answer = events[-1].response
        else:
            answer = await client.responses.create(**asked)
    assert (answer.id, answer.output_text) == ("resp_theirs", "The capital <is> Zürich 🏔")
    ((path, body),) = server.requests
    assert (path, body["model"], body["store"], body["next_month"]) == ("/v1/responses", "there", True, 1)


async def test_progress_is_sent_in_comments(start_gateway: StartGateway) -> None:
    eager = {"switching": {"progress_after_s": 0, "progress_every_s": 0.1}}
    async with start_gateway({"a": {"script": {"ready_after": 0.3}}}, gateway=eager) as gateway:
        body = {"model": "a", "input": "Hello", "stream": True}
        text = (await gateway.http.post("/v1/responses", json=body)).text
        shown, _, rest = text.partition("event: response.created\n")
        assert "loading a" in shown
        assert all(line.startswith(":") for line in shown.splitlines() if line)
        assert "word4" in rest


PATCH = '*** Begin Patch\n-"x"\n+"ü😀"\n*** End Patch\n'
CUSTOM: Any = {"type": "custom", "custom": {"name": "apply_patch", "format": {"type": "text"}}}
PATCHING = ScriptedAnswer(
    words=(), calls=(("call_1", "apply_patch", json.dumps({"input": PATCH})),), finish="tool_calls"
)  # fmt: skip


@pytest.mark.parametrize("backend", ["llamacpp", "ollama", "anthropic"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_custom_tool_of_a_chat(tmp_path: Path, backend: str, stream: bool) -> None:
    past: Any = {"id": "call_0", "type": "custom", "custom": {"name": "apply_patch", "input": "old"}}
    messages: Any = [
        {"role": "user", "content": "Fix it."},
        {"role": "assistant", "tool_calls": [past]},
        {"role": "tool", "tool_call_id": "call_0", "content": "no"},
    ]
    async with meeting(tmp_path, backend) as (server, client):
        server.answer = PATCHING
        if stream:
            head, text = None, ""
            async for event in await client.chat.completions.create(
                model="m", messages=messages, tools=[CUSTOM], stream=True
            ):
                for call in event.choices[0].delta.tool_calls or () if event.choices else ():
                    piece = call.model_extra["custom"] if call.model_extra else {}
                    head, text = head or (call.type, piece.get("name")), text + piece["input"]
            assert head == ("custom", "apply_patch")
            assert text == PATCH
        else:
            answer = await client.chat.completions.create(model="m", messages=messages, tools=[CUSTOM])
            (whole,) = answer.choices[0].message.tool_calls or ()
            assert whole.type == "custom"
            assert (whole.custom.name, whole.custom.input) == ("apply_patch", PATCH)
            assert answer.choices[0].finish_reason == "tool_calls"
        asked = json.dumps(server.requests[-1][1])
    assert "custom" not in asked
    assert asked.count("apply_patch") >= 2

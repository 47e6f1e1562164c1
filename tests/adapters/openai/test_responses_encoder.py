"""OpenAI's SDK reads any response of the responses API, streamed and whole."""

from __future__ import annotations

import json
from typing import Any

import pydantic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import Omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent

from hostler.adapters import sse
from hostler.adapters.base import Adapter, Incoming
from hostler.adapters.canonical import Chunk, Request, ResponseHead, ToolCall, Usage
from hostler.adapters.lmstudio.adapter import LMStudioAdapter
from hostler.adapters.openai.adapter import OpenAIAdapter

EVENTS: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)


STREAM = ResponseHead(media_type="text/event-stream")


message = st.text(min_size=1, max_size=8)


pieces = st.one_of(
    message.map(lambda text: Chunk(text=text)),
    message.map(lambda text: Chunk(reasoning=text)),
    st.builds(lambda one, two: Chunk(text=one, reasoning=two), message, message),
)


calls = st.lists(
    st.tuples(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.dictionaries(message, message, max_size=2)), max_size=3
)


finishes = st.sampled_from(["stop", "length", "tool_calls", "content_filter", None])


def requested(adapter: Adapter, path: str, **body: Any) -> Request:
    operation = next(each for each in adapter.operations if each.path == path)
    return adapter.decode(
        operation, Incoming(method="POST", path=path, body=json.dumps({"model": "m", **body}).encode())
    )


def result(adapter: Adapter, request: Request, content: list[Chunk]) -> bytes:
    encoder = adapter.encoder(request, response_id="req-1", created=17, progress="thinking")
    encoder.start(STREAM)
    return b"".join([*(encoder.encode(chunk) for chunk in content), encoder.finish()])


def story(content: list[Chunk], called: list[tuple[str, dict[str, str]]], finish: str | None) -> list[Chunk]:
    """A response whose calls come in two interleaved pieces each."""
    encoded = [json.dumps(arguments) for _, arguments in called]
    first = [
        Chunk(tool_calls=(ToolCall(index=at, id=f"call_{at}", name=name, arguments=encoded[at][:3]),))
        for at, (name, _) in enumerate(called)
    ]
    second = [Chunk(tool_calls=(ToolCall(index=at, arguments=encoded[at][3:]),)) for at in range(len(called))]
    counts = Usage(prompt_tokens=7, completion_tokens=5, cached_tokens=3, reasoning_tokens=2)
    return [
        *content,
        *(piece for pair in zip(first, second, strict=True) for piece in pair),
        Chunk(finish=finish, usage=counts),
    ]


def conversation_of(response: Response) -> tuple[str, str, list[Any]]:
    thoughts = "".join(part.text for item in response.output if item.type == "reasoning" for part in item.content or [])
    called = [(item.name, json.loads(item.arguments)) for item in response.output if item.type == "function_call"]
    return response.output_text, thoughts, called


def meant(content: list[Chunk], called: list[tuple[str, dict[str, str]]]) -> tuple[str, str, list[Any]]:
    return "".join(each.text for each in content), "".join(each.reasoning for each in content), called


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(content=st.lists(pieces, max_size=6), called=calls, finish=finishes)
def test_the_sdk_reads_any_response(
    content: list[Chunk], called: list[tuple[str, dict[str, str]]], finish: str | None
) -> None:
    adapter = OpenAIAdapter()
    whole = result(adapter, requested(adapter, "/v1/responses", input="x"), story(content, called, finish))
    assert conversation_of(Response.model_validate_json(whole)) == meant(content, called)
    stream = result(
        adapter, requested(adapter, "/v1/responses", input="x", stream=True), story(content, called, finish)
    )
    state: ResponseStreamState[Any] = ResponseStreamState(input_tools=Omit(), text_format=Omit())
    events = []
    for name, data in sse.iter_events(stream):
        event = EVENTS.validate_json(data)
        assert event.type == name
        state.handle_event(event)
        events.append(event)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1].response
    assert conversation_of(last) == meant(content, called)
    assert last.status == ("incomplete" if finish in ("length", "content_filter") else "completed")
    # All items are closed, each at its own index.
    opened = [event.output_index for event in events if event.type == "response.output_item.added"]
    closed = [event.output_index for event in events if event.type == "response.output_item.done"]
    assert opened == sorted(closed) == list(range(len(last.output)))


@settings(max_examples=60)
@given(content=st.lists(pieces, max_size=6))
def test_lm_studios_stream_and_whole_response_agree(content: list[Chunk]) -> None:
    adapter = LMStudioAdapter()
    end = story(content, [], "stop")
    whole = json.loads(result(adapter, requested(adapter, "/api/v1/chat", input="x"), end))
    stream = result(adapter, requested(adapter, "/api/v1/chat", input="x", stream=True), end)
    items: list[dict[str, str]] = []
    for name, data in sse.iter_events(stream):
        kind, _, what = name.partition(".")
        if what == "start" and kind in ("reasoning", "message"):
            items.append({"type": kind, "content": ""})
        if what == "delta":
            assert items[-1]["type"] == kind
            items[-1]["content"] += json.loads(data)["content"]
    assert items == whole["output"]
    assert json.loads(data)["result"] == whole
    assert "".join(item["content"] for item in items if item["type"] == "message") == meant(content, [])[0]

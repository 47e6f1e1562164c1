"""Responses in Anthropic's protocol: the sequence of events, whole messages, heartbeats, errors in a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes.anthropic_events import called, content, events, streamed

from hostler.adapters import lenient
from hostler.adapters.canonical import Chunk, Progress, ResponseHead, Usage
from hostler.adapters.errors import ModelUnavailable, TooManyRequests
from hostler.adapters.openai.response_parser import OpenAIParser

LOADING = Progress(phase="loading", model="b", from_model="a", percent=40.2, eta_s=11.6)


def whole(encoder: Any, *chunks: Chunk) -> dict[str, Any]:
    for chunk in chunks:
        assert encoder.encode(chunk) == b""
    body = encoder.finish()
    assert encoder.length == len(body)
    response: dict[str, Any] = json.loads(body)
    return response


COUNTED = Usage(prompt_tokens=30, cached_tokens=20, completion_tokens=7)


def test_a_stream_has_the_protocols_sequence_of_events(encoder: Any) -> None:
    found = streamed(
        encoder(),
        content(),
        content(reasoning="Hm"),
        content(text="Hel"),
        content(text="lo"),
        content(finish="stop", usage=COUNTED),
    )
    assert [event["type"] for event in found] == [
        "message_start", "content_block_start", "ping", "content_block_delta", "content_block_delta",
        "content_block_stop", "content_block_start", "content_block_delta", "content_block_delta",
        "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    message = found[0]["message"]
    assert (message["id"], message["type"], message["role"], message["model"]) == (
        "msg_chatcmpl_1",
        "message",
        "assistant",
        "a",
    )
    assert (message["content"], message["stop_reason"]) == ([], None)
    assert [event["delta"] for event in found if event["type"] == "content_block_delta"] == [
        {"type": "thinking_delta", "thinking": "Hm"},
        {"type": "signature_delta", "signature": ""},
        {"type": "text_delta", "text": "Hel"},
        {"type": "text_delta", "text": "lo"},
    ]
    assert [event["index"] for event in found if event["type"] == "content_block_start"] == [0, 1]
    assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert found[-2]["usage"] == {
        "input_tokens": 10, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 20, "output_tokens": 7,
    }  # fmt: skip


def test_a_whole_response_is_folded_from_the_chunks(encoder: Any) -> None:
    response = whole(
        encoder(stream=False),
        content(reasoning="H"), content(reasoning="m"), content(text="Hel"), content(text="lo"),
        called(0, '{"a"', "look", "toolu_1"), called(0, ":1}"),
        content(finish="tool_calls", usage=COUNTED),
    )  # fmt: skip
    assert response == {
        "id": "msg_chatcmpl_1",
        "type": "message",
        "role": "assistant",
        "model": "a",
        "content": [
            {"type": "thinking", "thinking": "Hm", "signature": ""},
            {"type": "text", "text": "Hello"},
            {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"a": 1}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 20, "output_tokens": 7,
        },
    }  # fmt: skip


@pytest.mark.parametrize("stream", [True, False])
def test_an_empty_response_is_still_a_message(encoder: Any, stream: bool) -> None:
    if stream:
        found = streamed(encoder(), content(finish="stop"))
        assert [event["type"] for event in found] == ["message_start", "message_delta", "message_stop"]
    else:
        assert whole(encoder(stream=False), content(finish="stop"))["content"] == []


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("stop", "end_turn"), ("length", "max_tokens"), ("tool_calls", "tool_use"), ("content_filter", "refusal"), ("?", "end_turn")],
)  # fmt: skip
def test_stop_reasons_are_translated(encoder: Any, finish: str, reason: str) -> None:
    assert whole(encoder(stream=False), content(text="x", finish=finish))["stop_reason"] == reason


def test_a_tool_call_implies_the_stop_reason_tool_use(encoder: Any) -> None:
    assert whole(encoder(stream=False), called(0, "{}", "look"), content(finish="stop"))["stop_reason"] == "tool_use"


@pytest.mark.parametrize("arguments", ["", "{", "[]", "no"])
def test_arguments_that_are_no_object_become_an_empty_input(encoder: Any, arguments: str) -> None:
    response = whole(encoder(stream=False), called(0, arguments, "look"), content(finish="length"))
    assert response["content"][0]["input"] == {}


@pytest.mark.parametrize(("lists", "kept"), [(10, True), (25, False)])
def test_arguments_of_too_many_lists_become_an_empty_input(
    encoder: Any, monkeypatch: pytest.MonkeyPatch, lists: int, kept: bool
) -> None:
    monkeypatch.setattr(lenient, "MAX_CONTAINERS", 20)
    arguments = '{"a":' + "[" * lists + "]" * lists + "}"
    response = whole(encoder(stream=False), called(0, arguments, "look"), content(finish="stop"))
    assert bool(response["content"][0]["input"]) is kept


def test_a_second_attempt_starts_from_scratch(encoder: Any) -> None:
    response = encoder(stream=False)
    response.encode(content(text="half"))
    response.start(ResponseHead())
    assert whole(response, content(text="whole", finish="stop"))["content"] == [{"type": "text", "text": "whole"}]


def test_nothing_is_written_before_the_first_token(encoder: Any) -> None:
    assert encoder().encode(content()) == b""


def test_a_heartbeat_is_a_comment_and_a_ping(encoder: Any) -> None:
    for progress in ("thinking", "quiet"):
        heartbeat = encoder(progress=progress).heartbeat(LOADING)
        assert heartbeat == b': [hostler] loading b: 40% (12 s left)\nevent: ping\ndata: {"type":"ping"}\n\n'
    assert encoder(progress="comments").heartbeat(LOADING) == b": [hostler] loading b: 40% (12 s left)\n"
    assert encoder(progress="off").heartbeat(LOADING) == encoder(stream=False).heartbeat(LOADING) == b""


def test_a_model_name_cannot_break_the_stream(encoder: Any) -> None:
    heartbeat = encoder().heartbeat(Progress(phase="loading", model='b\n\nevent: error\ndata: {"evil":1}\n\n'))
    assert [event["type"] for event in events(heartbeat)] == ["ping"]


def test_an_error_is_an_event(encoder: Any) -> None:
    found = events(encoder().error(ModelUnavailable("b failed to load")))
    assert found == [{"type": "error", "error": {"type": "overloaded_error", "message": "b failed to load"}}]
    assert encoder(stream=False).error(TooManyRequests("no")) == b""


@pytest.mark.parametrize("name", ["chat", "tools", "structured", "openrouter"])
def test_recorded_openai_streams_become_messages(encoder: Any, transcript: Any, name: str) -> None:
    def chunks() -> list[Chunk]:
        parser = OpenAIParser("chat", fields=True)
        parser.start(ResponseHead(media_type="text/event-stream"))
        return [*parser.feed(transcript(f"openai/{name}.sse")), *parser.finish()]

    message = whole(encoder(stream=False), *chunks())
    assert message["content"]
    assert message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"] > 0
    found = streamed(encoder(), *chunks())
    assert found[-2]["delta"]["stop_reason"] == message["stop_reason"]
    assert [e["content_block"]["type"] for e in found if e["type"] == "content_block_start"] == [
        block["type"] for block in message["content"]
    ]


def test_a_count_is_one_number(decode_request: Any, start_encoder: Any) -> None:
    parser = OpenAIParser("count", fields=True)
    parser.start(ResponseHead())
    body = b'{"input_tokens":37,"object":"response.input_tokens"}'
    count = start_encoder(
        decode_request("/v1/messages/count_tokens", {"model": "a", "messages": [{"role": "user", "content": "Hi"}]})
    )
    assert whole(count, *parser.feed(body), *parser.finish()) == {"input_tokens": 37}

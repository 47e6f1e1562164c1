"""Responses of Anthropic backends are forwarded or decoded, wherever the bytes are cut."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostler.adapters import sse
from hostler.adapters.anthropic.response_parser import AnthropicParser
from hostler.adapters.canonical import Chunk, ResponseHead, Usage
from hostler.adapters.errors import BackendBroken

STREAM = ResponseHead(media_type="text/event-stream; charset=utf-8")


fixtures_are_stateless = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60
)


def parsed(segments: Iterable[bytes], head: ResponseHead = STREAM, *, fields: bool = True) -> list[Chunk]:
    parser = AnthropicParser(fields=fields)
    parser.start(head)
    return [*(chunk for segment in segments for chunk in parser.feed(segment)), *parser.finish()]


def conversation_of(chunks: list[Chunk]) -> tuple[Any, ...]:
    calls: dict[int, tuple[Any, ...]] = {}
    for call in (call for chunk in chunks for call in chunk.tool_calls):
        known = calls.get(call.index, (call.id, call.name, ""))
        calls[call.index] = (*known[:2], known[2] + call.arguments)
    return (
        "".join(chunk.text for chunk in chunks),
        "".join(chunk.reasoning for chunk in chunks),
        {index: (*call[:2], json.loads(call[2])) for index, call in calls.items()},
        [chunk.finish for chunk in chunks if chunk.finish],
        [chunk.stop for chunk in chunks if chunk.stop],
        [chunk.usage for chunk in chunks if chunk.usage][-1],
    )


@pytest.mark.parametrize("name", ["anthropic.sse", "anthropic.json"])
def test_a_response_is_fully_decoded(transcript: Any, name: str) -> None:
    head = STREAM if name.endswith("sse") else ResponseHead()
    assert conversation_of(parsed([transcript(f"anthropic/{name}")], head)) == (
        "Let me look.",
        "The map first.",
        {0: ("toolu_01", "Read", {"file_path": "/inn/map.png"}), 1: ("toolu_02", "Pwd", {})},
        ["tool_calls"],
        [],
        Usage(prompt_tokens=20, cached_tokens=6, completion_tokens=89),
    )


@pytest.mark.parametrize("name", ["llama-server.sse", "llama-server.json"])
def test_llama_servers_responses_are_decoded(transcript: Any, name: str) -> None:
    head = STREAM if name.endswith("sse") else ResponseHead(media_type="application/json; charset=utf-8")
    text, _, _, finish, stop, usage = conversation_of(parsed([transcript(f"anthropic/{name}")], head))
    assert (text, finish, stop) == ("The capital of France is ", ["stop"], ["Paris"])
    assert (usage.prompt_tokens, usage.completion_tokens) == (23, 6)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % len(stream) for place in places}), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges)]


@fixtures_are_stateless
@given(name=st.sampled_from(["anthropic", "llama-server"]), places=st.lists(st.integers(0, 10_000), max_size=30))
def test_any_segmentation_gives_the_same_response(transcript: Any, name: str, places: list[int]) -> None:
    stream = transcript(f"anthropic/{name}.sse")
    assert conversation_of(parsed(cut(stream, places))) == conversation_of(parsed([stream]))
    forwarded = parsed(cut(stream, places), fields=False)
    assert b"".join(chunk.raw for chunk in forwarded) == stream
    assert [chunk.finish for chunk in forwarded if chunk.finish] == conversation_of(parsed([stream]))[3]


@pytest.mark.parametrize("fields", [True, False])
def test_nothing_is_forwarded_before_the_first_token(transcript: Any, fields: bool) -> None:
    opening = transcript("anthropic/anthropic.sse").split(b"event: content_block_start")[0] + sse.event(
        b'{"type":"ping"}', "ping"
    )
    parser = AnthropicParser(fields=fields)
    parser.start(STREAM)
    assert list(parser.feed(opening)) == []
    with pytest.raises(BackendBroken, match="Overloaded"):
        list(
            parser.feed(
                sse.event(b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}', "error")
            )
        )


@pytest.mark.parametrize("fields", [True, False])
@pytest.mark.parametrize("data", [b"[", b"{", b'{"type": "content_block_delta", "index": [}'])
def test_an_event_that_is_not_json_is_broken(data: bytes, fields: bool) -> None:
    with pytest.raises(BackendBroken, match="protocol does not allow"):
        parsed([sse.event(data, "content_block_delta")], fields=fields)


@pytest.mark.parametrize("fields", [True, False])
def test_an_error_in_the_stream_comes_after_the_chunks_before_it(fields: bool) -> None:
    word = sse.event(
        b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}', "content_block_delta"
    )
    parser = AnthropicParser(fields=fields)
    parser.start(STREAM)
    assert len(list(parser.feed(word))) == 1
    got = []
    with pytest.raises(BackendBroken, match="in the middle"):
        for chunk in parser.feed(word + sse.event(b'{"type":"error"}', "error")):
            got.append(chunk)
    assert len(got) == 1


@pytest.mark.parametrize("fields", [True, False])
def test_a_response_without_its_end_is_broken(transcript: Any, fields: bool) -> None:
    stream = transcript("anthropic/anthropic.sse").partition(b"event: message_stop")[0]
    with pytest.raises(BackendBroken):
        parsed([stream], fields=fields)
    with pytest.raises(BackendBroken):
        parsed([b'{"content":[]'], ResponseHead(length=50), fields=fields)


def test_unknown_events_are_ignored() -> None:
    stop = b'{"type":"message_delta","delta":{"stop_reason":"end_turn"}}'
    strange = sse.event(b'{"type":"sunrise","index":"x"}', "sunrise") + sse.event(stop, "message_delta")
    strange += sse.event(b'{"type":"message_stop"}', "message_stop")
    assert [chunk.finish for chunk in parsed([strange])] == ["stop"]
    assert b"".join(chunk.raw for chunk in parsed([strange], fields=False)) == strange


@pytest.mark.parametrize("fields", [False, True])
def test_a_stop_without_a_stop_reason_is_broken(fields: bool) -> None:
    start = sse.event(b'{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"Hi"}}', "x")
    with pytest.raises(BackendBroken, match="before it was complete"):
        parsed([start, sse.event(b'{"type":"message_stop"}', "message_stop")], fields=fields)


@pytest.mark.parametrize("fields", [False, True])
@pytest.mark.parametrize("body", [b"", b" ", b"<html>", b"{}", b"[]", b'{"content":[', b'{"error":{"message":"x"}}'])
def test_what_is_no_message_is_broken(body: bytes, fields: bool) -> None:
    with pytest.raises(BackendBroken):
        parsed([body], ResponseHead(), fields=fields)


def test_odd_token_counts_are_left_out() -> None:
    usage = b'{"input_tokens":"12","output_tokens":1%b}' % (b"0" * 400)
    body = b'{"content":[{"type":"text","text":"Hi"}],"stop_reason":"end_turn","usage":%b}' % usage
    (chunk,) = parsed([body], ResponseHead())
    assert chunk.usage is not None
    assert (chunk.text, chunk.usage.prompt_tokens, chunk.usage.completion_tokens) == ("Hi", 12, 0)


def test_an_error_in_a_stream_has_the_status_of_its_type() -> None:
    error = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
    with pytest.raises(BackendBroken, match="Overloaded") as raised:
        parsed([sse.event(error, "error")])
    assert (raised.value.backend_status, raised.value.body) == (529, error)


PING, START = (
    sse.event(b'{"type":"ping"}', "ping"),
    sse.event(b'{"type":"message_start","message":{}}', "message_start"),
)
WORD = sse.event(
    b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}', "content_block_delta"
)


def test_pings_and_comments_are_signs_of_life_before_and_between_tokens() -> None:
    parser = AnthropicParser()
    assert [*parser.feed(START + PING), *parser.feed(b": x\n\n")] == []
    assert parser.take_signs() == PING + b": x\n\n"
    assert b"".join(chunk.raw for chunk in parser.feed(WORD)) == START + WORD
    assert [*parser.feed(PING)] == []
    # Not taken, it keeps its place.
    assert b"".join(chunk.raw for chunk in parser.feed(WORD)) == PING + WORD

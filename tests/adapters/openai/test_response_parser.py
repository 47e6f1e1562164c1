"""Responses of OpenAI backends are forwarded or decoded; broken ones are never complete."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostler.adapters.canonical import Chunk, PromptStatus, ResponseHead
from hostler.adapters.errors import BackendBroken

Parse = Callable[..., list[Chunk]]


Transcript = Callable[[str], bytes]


JSON = ResponseHead()


STREAMS = {
    "chat": "chat", "choices": "chat", "tools": "chat", "empty": "chat", "structured": "chat", "openrouter": "chat",
    "completions": "completions", "prompts": "completions", "responses": "responses",
}  # fmt: skip


fixtures_are_stateless = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60
)


def event(**body: Any) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def delta(finish: str | None = None, **content: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": content, "finish_reason": finish}])


DONE = b"data: [DONE]\n\n"


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % len(stream) for place in places}), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize(("name", "operation"), STREAMS.items())
def test_a_stream_is_forwarded_as_it_came(parse: Parse, transcript: Transcript, name: str, operation: str) -> None:
    stream = transcript(f"openai/{name}.sse")
    forwarded = b"".join(chunk.raw for chunk in parse([stream], operation=operation))
    assert forwarded == stream


@fixtures_are_stateless
@given(name=st.sampled_from(sorted(STREAMS)), places=st.lists(st.integers(0, 10_000), max_size=30), dos=st.booleans())
def test_any_segmentation_gives_the_same_response(
    parse: Parse, transcript: Transcript, name: str, places: list[int], dos: bool
) -> None:
    stream = transcript(f"openai/{name}.sse")
    stream = stream.replace(b"\n", b"\r\n") if dos else stream

    def response(segments: list[bytes], *, fields: bool) -> tuple[Any, ...]:
        chunks = parse(segments, operation=STREAMS[name], fields=fields)
        return (
            b"".join(chunk.raw for chunk in chunks),
            "".join(chunk.text for chunk in chunks),
            "".join(chunk.reasoning for chunk in chunks),
            [call for chunk in chunks for call in chunk.tool_calls],
            [token for chunk in chunks for token in chunk.logprobs],
            [chunk.finish for chunk in chunks if chunk.finish][-1],
            [chunk.usage for chunk in chunks if chunk.usage][-1],
        )

    for fields in (False, True):
        assert response(cut(stream, places), fields=fields) == response([stream], fields=fields)


@pytest.mark.parametrize(
    "stream",
    [
        delta(role="assistant") + delta(content="Hi"),
        delta(content="Hi") + b'data: {"choices":[{"fin',
        b"",
        b": comment\n\n",
    ],
)
def test_a_response_that_just_ends_is_broken(parse: Parse, stream: bytes) -> None:
    with pytest.raises(BackendBroken, match="ended"):
        parse([stream])


@pytest.mark.parametrize("end", [DONE, b"data: [DONE]"])
def test_done_completes_a_finished_response(parse: Parse, end: bytes) -> None:
    response = delta(content="Hi") + delta("stop")
    assert b"".join(chunk.raw for chunk in parse([response + end])) == response + DONE


@pytest.mark.parametrize("fields", [False, True])
@pytest.mark.parametrize(
    ("response", "choices"),
    [
        (delta(content="Hi"), 1),
        (delta(role="assistant", content=""), 1),
        (event(choices=[]), 1),
        (b"", 1),
        (event(choices=[], usage={"prompt_tokens": 1}), 1),
        (delta("stop") + event(choices=[{"index": 1, "delta": {"content": "Hi"}}]), 2),
    ],
)
def test_done_without_a_finish_reason_is_broken(parse: Parse, response: bytes, choices: int, fields: bool) -> None:
    with pytest.raises(BackendBroken, match="before it was complete"):
        parse([response, DONE], fields=fields, choices=choices)


def test_a_finish_reason_completes_a_response_and_done_is_added(parse: Parse) -> None:
    stream = delta(content="Hi") + delta("stop")
    assert b"".join(chunk.raw for chunk in parse([stream])) == stream + DONE


def test_each_choice_must_finish(parse: Parse) -> None:
    with pytest.raises(BackendBroken):
        parse([delta("stop")], choices=2)


def test_responses_are_complete_with_their_closing_event(parse: Parse, transcript: Transcript) -> None:
    stream = transcript("openai/responses.sse")
    with pytest.raises(BackendBroken):
        parse([stream[: stream.index(b"event: response.completed")]], operation="responses")


CREATED = event(type="response.created", response={"id": "r", "object": "response", "status": "in_progress"})
WORD = event(type="response.output_text.delta", item_id="i", output_index=0, content_index=0, delta="Hi")


@pytest.mark.parametrize("end", [b"", DONE])
@pytest.mark.parametrize("begin", [b"", CREATED, CREATED + WORD])
def test_responses_without_their_closing_event_are_broken(parse: Parse, begin: bytes, end: bytes) -> None:
    with pytest.raises(BackendBroken, match="before it was complete"):
        parse([begin, end], operation="responses")


@pytest.mark.parametrize("begin", [b"", CREATED])
def test_a_chat_is_no_answer_to_a_responses_request(parse: Parse, begin: bytes) -> None:
    with pytest.raises(BackendBroken, match="does not allow"):
        parse([begin, delta(content="Hi"), delta("stop"), DONE], operation="responses")


@pytest.mark.parametrize("content", ["x" * 100_000, "x" * 300_000, [{"type": "text", "text": "word"}], 5, [[[]]] * 9])
@pytest.mark.parametrize("cuts", [[], [70_000], [150, 151]])
def test_long_and_odd_contents_are_forwarded_as_they_came(parse: Parse, content: object, cuts: list[int]) -> None:
    stream = delta(content="one") + delta(content=content) + delta(content="two") + delta("stop") + DONE
    chunks = parse(cut(stream, cuts))
    assert b"".join(chunk.raw for chunk in chunks) == stream
    assert [chunk.finish for chunk in chunks if chunk.finish] == ["stop"]


def test_events_that_open_a_response_are_held_until_the_first_token(parse: Parse) -> None:
    added = event(type="response.output_item.added", output_index=0, item={"type": "message"})
    closing = event(type="response.completed", response={"id": "r", "status": "completed"})
    first, *_ = parse([CREATED, added, WORD, closing], operation="responses")
    assert first.raw == CREATED
    with pytest.raises(BackendBroken):
        parse([CREATED, added, b"data: {\n\n"], operation="responses")


ERRORS = [
    event(error={"message": "out of memory", "code": 500}),
    event(error="out of memory"),
    b'event: error\ndata: {"type":"error","message":"out of memory"}\n\n',
    event(id="x", choices=[{"index": 0, "delta": {}, "finish_reason": "error"}], error={"message": "out of memory"}),
    event(choices=[{"index": 0, "delta": {"content": "half"}, "error": {"message": "out of memory"}}]),
]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("fields", [False, True])
def test_an_error_in_the_first_event_forwards_nothing(parse: Parse, error: bytes, fields: bool) -> None:
    given: list[Chunk] = []
    with pytest.raises(BackendBroken, match="out of memory"):
        given += parse([delta(role="assistant", content=None) + error], fields=fields)
    assert given == []


@pytest.mark.parametrize("error", ERRORS)
def test_chunks_before_an_error_are_still_forwarded(error: bytes) -> None:
    from hostler.adapters.openai.response_parser import OpenAIParser

    parser = OpenAIParser("chat")
    given = list(parser.feed(delta(content="one")))
    with pytest.raises(BackendBroken, match="out of memory"):
        for chunk in parser.feed(delta(content="two") + error):
            given.append(chunk)
    assert b"".join(chunk.raw for chunk in given) == delta(content="one") + delta(content="two")


def test_a_finish_reason_of_error_is_an_error(parse: Parse) -> None:
    with pytest.raises(BackendBroken, match="stopped with an error"):
        parse([delta("error")])


@pytest.mark.parametrize("data", [b'{"error"', b"[", b"[1", b'{"choices": 3, "id'])
@pytest.mark.parametrize("fields", [False, True])
def test_an_event_that_is_not_json_is_broken(parse: Parse, data: bytes, fields: bool) -> None:
    with pytest.raises(BackendBroken, match="protocol does not allow"):
        parse([b"data: " + data + b"\n\n", delta("stop")], fields=fields)


@pytest.mark.parametrize("end", [b"data: [", b"data: [DONE", b"data: {"])
def test_an_event_that_is_cut_off_is_broken(parse: Parse, end: bytes) -> None:
    with pytest.raises(BackendBroken, match="in the middle of an event"):
        parse([delta(content="Hi") + delta("stop") + end])


def test_the_word_error_in_the_content_is_no_error(parse: Parse) -> None:
    stream = delta(content='"error": [DONE]') + delta(content="error") + delta("stop") + DONE
    assert b"".join(chunk.raw for chunk in parse([stream])) == stream


def test_a_truncated_response_is_broken(parse: Parse) -> None:
    with pytest.raises(BackendBroken, match="3 of 10 bytes"):
        parse([b'{"a'], head=ResponseHead(length=10))


def parser_of(operation: str = "chat", **more: Any) -> Any:
    from hostler.adapters.openai.response_parser import OpenAIParser

    return OpenAIParser(operation, **more)


@pytest.mark.parametrize("fields", [False, True])
@pytest.mark.parametrize("error", ERRORS)
def test_opening_events_are_held_back_until_the_first_token(error: bytes, fields: bool) -> None:
    parser = parser_of(fields=fields)
    assert [*parser.feed(delta(role="assistant", content=""))] == []
    with pytest.raises(BackendBroken):
        parser.feed(error)
    parser.start(ResponseHead(media_type="text/event-stream"))
    opening, word = delta(role="assistant", content=""), delta(content="Hi")
    assert [*parser.feed(opening)] == []
    assert b"".join(chunk.raw for chunk in parser.feed(word)) == opening + word


def test_opening_events_are_not_held_back_for_ever() -> None:
    parser = parser_of("responses")
    opening = event(type="response.content_part.added", part={"type": "output_text", "text": ""}, item_id="i")
    given = [chunk for _ in range(100) for chunk in parser.feed(opening)]
    assert b"".join(chunk.raw for chunk in given) == opening * 100


def reading(processed: int) -> bytes:
    progress = {"total": 100, "cache": 20, "processed": processed, "time_ms": 1500}
    return event(
        choices=[{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}],
        timings={"prompt_n": processed},
        prompt_progress=progress,
    )


def test_prompt_progress_is_no_token_and_may_be_passed_on_at_once() -> None:
    parser = parser_of()
    assert [*parser.feed(reading(20)), *parser.feed(b":\n\n"), *parser.feed(reading(60))] == []
    assert parser.prompt == PromptStatus(total=100, cached=20, processed=60, seconds=1.5)
    assert parser.take_signs() == reading(20) + b":\n\n" + reading(60)
    assert parser.take_signs() == b""
    assert b"".join(chunk.raw for chunk in parser.feed(delta(content="Hi"))) == delta(content="Hi")


@pytest.mark.parametrize("fields", [False, True])
def test_prompt_progress_that_the_client_did_not_ask_for_is_removed(fields: bool) -> None:
    parser = parser_of(fields=fields, strips_progress=True)
    assert [*parser.feed(reading(20) + delta(role="assistant", content=""))] == []
    assert parser.prompt is not None
    chunks = parser.feed(reading(100) + delta(content="Hi"))
    assert b"".join(chunk.raw for chunk in chunks) == delta(role="assistant", content="") + delta(content="Hi")


def test_comments_alone_between_tokens_are_signs_of_life() -> None:
    parser = parser_of()
    words = [*parser.feed(delta(content="one")), *parser.feed(b": wait\n\n")]
    assert b"".join(chunk.raw for chunk in words) == delta(content="one")
    assert parser.take_signs() == b": wait\n\n"
    assert [*parser.feed(b":\n\n")] == []
    # Not taken, it keeps its place.
    assert b"".join(chunk.raw for chunk in parser.feed(delta(content="two"))) == b":\n\n" + delta(content="two")


@pytest.mark.parametrize("fields", [False, True])
def test_the_progress_of_another_gateway_is_no_token(fields: bool) -> None:
    parser = parser_of(fields=fields)
    beat = event(
        choices=[{"index": 0, "delta": {"reasoning_content": "[hostler] loading b"}}], x_hostler={"phase": "x"}
    )
    assert [*parser.feed(beat)] == []
    assert parser.take_signs() == (b"" if fields else beat)


@pytest.mark.parametrize(
    ("error", "status"),
    [({"code": 402, "message": "pay"}, 402), ({"code": "rate_limited", "message": "slow"}, None), ("oops", None)],
)
def test_an_error_keeps_the_status_that_it_names(error: Any, status: int | None) -> None:
    with pytest.raises(BackendBroken) as broken:
        parser_of().feed(event(error=error))
    assert broken.value.backend_status == status


@pytest.mark.parametrize("fields", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        {"error": {"code": 502, "message": "provider failed"}},
        {"choices": [{"finish_reason": "error", "error": {"code": 502, "message": "provider failed"}}]},
    ],
)
def test_an_error_in_a_whole_response_is_raised(body: dict[str, Any], fields: bool) -> None:
    parser = parser_of(fields=fields)
    parser.start(JSON)
    with pytest.raises(BackendBroken, match="provider failed") as broken:
        [*parser.feed(json.dumps(body).encode()), *parser.finish()]
    assert broken.value.backend_status == 502


@pytest.mark.parametrize("media_type", ["text/event-stream", "application/json"])
def test_a_response_that_is_not_text_is_broken(media_type: str) -> None:
    parser = parser_of(fields=True)
    parser.start(ResponseHead(media_type=media_type))
    choice = b'{"choices":[{"delta":{"content":"\xff"},"message":{"content":"\xff"}}]}'
    with pytest.raises(BackendBroken):
        parser.feed(choice if media_type == "application/json" else b"data: " + choice + b"\n\n")
        parser.finish()


@pytest.mark.parametrize("operation", ["embeddings", "chat"])
def test_a_large_whole_response_that_is_cut_off_is_broken(operation: str) -> None:
    body = b'{"choices":[{"message":{"content":"' + b"x" * 400_000 + b'"}}],"data":[1]}\n'
    for data, is_whole in ((body, True), (body[:300_000], False), (b"<html>" + body, False)):
        parser = parser_of(operation)
        parser.start(JSON)
        pieces = [data[at : at + 65_536] for at in range(0, len(data), 65_536)]
        try:
            chunks = [chunk for piece in pieces for chunk in parser.feed(piece)] + [*parser.finish()]
        except BackendBroken:
            assert not is_whole
        else:
            assert is_whole
            assert b"".join(chunk.raw for chunk in chunks) == data


@pytest.mark.parametrize("index", [1, 12, "12", 10**400])
def test_the_only_choice_is_the_first_whatever_its_index(parse: Parse, index: Any) -> None:
    deltas = [
        {"content": "Hi"},
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}]},
    ]
    events = [event(choices=[{"index": index, "delta": each, "finish_reason": None}]) for each in deltas]
    events.append(event(choices=[{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]))
    chunks = parse([*events, DONE], fields=True)
    assert {chunk.index for chunk in chunks} == {0}
    assert "".join(chunk.text for chunk in chunks) == "Hi"
    assert [call.name for chunk in chunks for call in chunk.tool_calls if call.name] == ["f"]

"""OpenAI answers: forwarded byte by byte, folded without loss, or written anew; broken ones are never complete."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostler.adapters import sse
from hostler.adapters.errors import BackendBroken
from hostler.adapters.openai.fold import StreamFold
from hostler.adapters.types import Chunk, ResponseHead, TokenLogprob, ToolCall, Usage

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


def delta(finish: str | None = None, **said: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": said, "finish_reason": finish}])


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
def test_any_cutting_gives_the_same_answer(
    parse: Parse, transcript: Transcript, name: str, places: list[int], dos: bool
) -> None:
    stream = transcript(f"openai/{name}.sse")
    stream = stream.replace(b"\n", b"\r\n") if dos else stream

    def answer(segments: list[bytes], *, fields: bool) -> tuple[Any, ...]:
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
        assert answer(cut(stream, places), fields=fields) == answer([stream], fields=fields)


# What differs between two runs: ids, times and speeds, and how much of the question was known already.
CHANCE = re.compile(
    rb'"(id|created|cached_tokens|cache_n|prompt_n|[a-z_]+_ms|[a-z_]+_per_second)":("\w[\w-]*"|[0-9.e-]+)'
)


@pytest.mark.parametrize("name", ["chat", "choices", "tools", "empty", "structured", "completions"])
def test_a_folded_answer_is_the_one_the_server_gives(
    chat: Any, ask: Any, begin: Any, parse: Parse, transcript: Transcript, name: str
) -> None:
    request = ask("/v1/completions", {"prompt": ""}) if name == "completions" else chat()
    encoder = begin(request)
    written = [encoder.encode(chunk) for chunk in parse([transcript(f"openai/{name}.sse")], operation=STREAMS[name])]
    folded = encoder.finish()
    real = transcript(f"openai/{name}.json")
    assert not any(written)
    assert (encoder.media_type, encoder.length) == ("application/json; charset=utf-8", len(folded))
    assert CHANCE.sub(rb'"\1":0', folded) == CHANCE.sub(rb'"\1":0', real)


def test_an_answer_that_begins_with_half_a_letter_has_its_role() -> None:
    fold = StreamFold()
    fold.add_events(delta(content="П") + delta("stop") + DONE)
    assert json.loads(fold.result())["choices"][0]["message"] == {"role": "assistant", "content": "П"}


def test_numbers_are_folded_as_they_are_written() -> None:
    fold = StreamFold()
    fold.add_events(event(choices=[{"index": 0, "delta": {"content": "a"}}]))
    numbers = b'{"tiny":-1.1920928955078125e-07,"large":1e+20,"zero":-0.0,"round":2.0,"long":12345678901234567890}'
    fold.add_events(b'data: {"choices":[],"timings":' + numbers + b"}\n\n")
    assert b'"timings":' + numbers in fold.result()


def test_a_folded_response_is_the_one_the_server_completed(
    ask: Any, begin: Any, parse: Parse, transcript: Transcript
) -> None:
    encoder = begin(ask("/v1/responses", {"input": "x"}))
    for chunk in parse([transcript("openai/responses.sse")], operation="responses"):
        encoder.encode(chunk)
    folded, real = json.loads(encoder.finish()), json.loads(transcript("openai/responses.json"))
    assert folded["status"] == "completed"
    assert folded["output"][0]["content"] == real["output"][0]["content"]
    assert folded["usage"]["output_tokens"] == real["usage"]["output_tokens"]


def test_folding_loses_no_field_of_other_servers(transcript: Transcript) -> None:
    fold = StreamFold()
    fold.add_events(transcript("openai/openrouter.sse"))
    answer = json.loads(fold.result())
    assert answer["provider"] == "Together"
    assert answer["object"] == "chat.completion"
    assert answer["usage"]["cost"] == 0.000012
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hi",
                "reasoning": "Let me",
                "reasoning_details": [{"type": "reasoning.text", "text": "Let me"}],
            },
            "finish_reason": "stop",
            "native_finish_reason": "stop",
            "logprobs": None,
        }
    ]


def test_pieces_of_several_tool_calls_find_together() -> None:
    fold = StreamFold()
    for piece in (
        [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}],
        [{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{"}}],
        [{"index": 0, "function": {"arguments": "{}"}}, {"index": 1, "id": "b", "function": {"arguments": "}"}}],
    ):
        fold.add({"id": "x", "choices": [{"index": 0, "delta": {"content": None, "tool_calls": piece}}]})
    message = json.loads(fold.result())["choices"][0]["message"]
    assert message["content"] is None
    assert [(call["id"], call["function"]) for call in message["tool_calls"]] == [
        ("a", {"name": "f", "arguments": "{}"}),
        ("b", {"name": "g", "arguments": "{}"}),
    ]


def test_counts_are_noticed_from_usage_and_timings(parse: Parse, transcript: Transcript) -> None:
    usage = [chunk.usage for chunk in parse([transcript("openai/chat.sse")]) if chunk.usage]
    assert usage == [
        Usage(prompt_tokens=32, completion_tokens=6, cached_tokens=31, prompt_ms=7.403, completion_ms=37.624)
    ]
    timed = [chunk.usage for chunk in parse([transcript("openai/chat-no-usage.sse")]) if chunk.usage]
    assert (timed[0].prompt_tokens, timed[0].cached_tokens, timed[0].completion_tokens) == (32, 31, 6)
    cloud = [chunk.usage for chunk in parse([transcript("openai/openrouter.sse")]) if chunk.usage]
    assert (cloud[0].cost, cloud[0].reasoning_tokens, cloud[0].cached_tokens) == (0.000012, 3, 4)


def test_fields_are_decoded_when_asked_for(parse: Parse, transcript: Transcript) -> None:
    chunks = parse([transcript("openai/tools.sse")], fields=True)
    calls = [call for chunk in chunks for call in chunk.tool_calls]
    assert (calls[0].name, "".join(call.arguments for call in calls)) == ("get_weather", '{"city": "Berlin"}')
    tokens = [token for chunk in parse([transcript("openai/choices.sse")], fields=True) for token in chunk.logprobs]
    assert (tokens[0].token, tokens[0].top[1].token) == ("I", "Hello")
    thought = parse([transcript("openai/openrouter.sse")], fields=True)
    assert ("".join(c.reasoning for c in thought), "".join(c.text for c in thought)) == ("Let me", "Hi")


@pytest.mark.parametrize(
    "stream",
    [
        delta(role="assistant") + delta(content="Hi"),
        delta(content="Hi") + b'data: {"choices":[{"fin',
        b"",
        b": comment\n\n",
    ],
)
def test_an_answer_that_just_ends_is_broken(parse: Parse, stream: bytes) -> None:
    with pytest.raises(BackendBroken, match="ended"):
        parse([stream])


@pytest.mark.parametrize("stream", [delta(content="Hi") + DONE, delta(content="Hi") + b"data: [DONE]"])
def test_done_completes_an_answer(parse: Parse, stream: bytes) -> None:
    assert b"".join(chunk.raw for chunk in parse([stream])) == delta(content="Hi") + DONE


def test_a_finish_reason_completes_an_answer_and_done_is_added(parse: Parse) -> None:
    stream = delta(content="Hi") + delta("stop")
    assert b"".join(chunk.raw for chunk in parse([stream])) == stream + DONE


def test_each_choice_must_finish(parse: Parse) -> None:
    with pytest.raises(BackendBroken):
        parse([delta("stop")], choices=2)


def test_responses_are_complete_with_their_closing_event(parse: Parse, transcript: Transcript) -> None:
    stream = transcript("openai/responses.sse")
    with pytest.raises(BackendBroken):
        parse([stream[: stream.index(b"event: response.completed")]], operation="responses")


ERRORS = [
    event(error={"message": "out of memory", "code": 500}),
    event(error="out of memory"),
    b'event: error\ndata: {"type":"error","message":"out of memory"}\n\n',
    event(id="x", choices=[{"index": 0, "delta": {}, "finish_reason": "error"}], error={"message": "out of memory"}),
]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("fields", [False, True])
def test_an_error_with_the_beginning_gives_nothing_away(parse: Parse, error: bytes, fields: bool) -> None:
    given: list[Chunk] = []
    with pytest.raises(BackendBroken, match="out of memory"):
        given += parse([delta(role="assistant", content=None) + error], fields=fields)
    assert given == []


@pytest.mark.parametrize("error", ERRORS)
def test_words_before_an_error_are_still_given(error: bytes) -> None:
    from hostler.adapters.openai.parser import OpenAIParser

    parser = OpenAIParser("chat")
    given = list(parser.feed(delta(content="one")))
    with pytest.raises(BackendBroken, match="out of memory"):
        for chunk in parser.feed(delta(content="two") + error):
            given.append(chunk)
    assert b"".join(chunk.raw for chunk in given) == delta(content="one") + delta(content="two")


def test_a_finish_reason_of_error_is_an_error(parse: Parse) -> None:
    with pytest.raises(BackendBroken, match="stopped with an error"):
        parse([delta("error")])


def test_an_event_that_is_no_json_is_broken(parse: Parse) -> None:
    with pytest.raises(BackendBroken, match="protocol does not allow"):
        parse([b'data: {"error"\n\n'])


def test_the_word_error_in_an_answer_is_no_error(parse: Parse) -> None:
    stream = delta(content='"error": [DONE]') + delta(content="error") + delta("stop") + DONE
    assert b"".join(chunk.raw for chunk in parse([stream])) == stream


def test_a_whole_answer_is_forwarded_with_its_length(
    chat: Any, begin: Any, parse: Parse, transcript: Transcript
) -> None:
    body = transcript("openai/chat.json")
    head = ResponseHead(media_type="application/json; charset=utf-8", length=len(body))
    encoder = begin(chat(), head)
    chunks = parse([body[:100], body[100:]], head=head)
    assert b"".join(encoder.encode(chunk) for chunk in chunks) + encoder.finish() == body
    assert (encoder.length, encoder.media_type) == (len(body), "application/json; charset=utf-8")
    assert (chunks[-1].usage or Usage()).completion_tokens == 6


def test_a_whole_answer_that_is_cut_off_is_broken(parse: Parse) -> None:
    with pytest.raises(BackendBroken, match="3 of 10 bytes"):
        parse([b"abc"], head=ResponseHead(length=10))


def test_a_whole_answer_is_told_as_a_stream_to_who_asked_for_one(
    chat: Any, begin: Any, parse: Parse, transcript: Transcript
) -> None:
    encoder = begin(chat(stream=True), JSON)
    body = transcript("openai/tools.json")
    written = b"".join(encoder.encode(chunk) for chunk in parse([body], head=JSON)) + encoder.finish()
    fold = StreamFold()
    fold.add_events(written)
    assert json.loads(fold.result())["choices"] == json.loads(body)["choices"]
    assert written.endswith(DONE)
    assert encoder.media_type == "text/event-stream"


OTHER = [
    Chunk(wire="other", reasoning="Hm."),
    Chunk(wire="other", text="Hi", logprobs=(TokenLogprob(token="Hi", logprob=-0.5),)),
    Chunk(wire="other", tool_calls=(ToolCall(name="f", arguments="{}"),)),
    Chunk(wire="other", finish="tool_calls", usage=Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)),
]


@pytest.mark.parametrize(
    ("path", "answer_id", "told"),
    [
        ("/v1/chat/completions", "req-0a1b", "chatcmpl-0a1b"),
        ("/v1/completions", "req-0a1b", "cmpl-0a1b"),
        ("/v1/chat/completions", "the-clients-own", "the-clients-own"),
    ],
)
def test_an_answer_of_another_protocol_has_an_id_as_openai_gives_them(
    adapter: Any, ask: Any, path: str, answer_id: str, told: str
) -> None:
    request = ask(path, {"model": "a", "messages": [{"role": "user", "content": "x"}], "prompt": "x"})
    encoder = adapter.encoder(request, response_id=answer_id, created=1, progress="off")
    encoder.start(ResponseHead())
    call = Chunk(wire="other", tool_calls=(ToolCall(name="f", arguments="{}"),))
    told_whole = encoder.encode(call) + encoder.encode(Chunk(wire="other", finish="stop")) + encoder.finish()
    answer = json.loads(told_whole)
    assert answer["id"] == told
    for made_up in answer["choices"][0].get("message", {}).get("tool_calls", ()):
        assert made_up["id"].startswith("call_") and "req" not in made_up["id"]


def test_chunks_of_another_protocol_are_written_as_a_stream(chat: Any, begin: Any) -> None:
    encoder = begin(chat(stream=True, stream_options={"include_usage": True}))
    written = b"".join(encoder.encode(chunk) for chunk in OTHER) + encoder.finish()
    events = [json.loads(data) for _, data in sse.iter_events(written) if data != b"[DONE]"]
    assert {(one["id"], one["object"], one["created"], one["model"]) for one in events} == {
        ("chatcmpl-1", "chat.completion.chunk", 1700000000, "a")
    }
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert (events[-1]["choices"], events[-1]["usage"]["total_tokens"]) == ([], 5)
    assert written.endswith(DONE)


def test_chunks_of_another_protocol_are_folded_to_a_whole_answer(chat: Any, begin: Any) -> None:
    encoder = begin(chat())
    assert [encoder.encode(chunk) for chunk in OTHER] == [b""] * 4
    answer = json.loads(encoder.finish())
    choice = answer["choices"][0]
    assert (answer["object"], choice["message"]["content"], choice["message"]["reasoning_content"]) == (
        "chat.completion",
        "Hi",
        "Hm.",
    )
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert choice["logprobs"]["content"][0]["logprob"] == -0.5
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}


def test_completions_of_another_protocol_are_plain_text(ask: Any, begin: Any) -> None:
    encoder = begin(ask("/v1/completions", {"model": "a", "prompt": "x"}))
    for chunk in (Chunk(wire="other", text="Hi"), Chunk(wire="other", text="!", finish="stop")):
        encoder.encode(chunk)
    answer = json.loads(encoder.finish())
    assert (answer["object"], answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (
        "text_completion",
        "Hi!",
        "stop",
    )


def test_embeddings_of_another_protocol_come_in_the_form_asked_for(ask: Any, begin: Any, parse: Parse) -> None:
    vectors = ((0.5, -1.0), (2.0, 0.25))
    for form in ("float", "base64"):
        encoder = begin(ask("/v1/embeddings", {"model": "a", "input": ["x", "y"], "encoding_format": form}), JSON)
        encoder.encode(Chunk(wire="other", is_body=True, vectors=vectors, usage=Usage(prompt_tokens=4)))
        body = encoder.finish()
        assert isinstance(json.loads(body)["data"][1]["embedding"], str if form == "base64" else list)
        again = parse([body], head=JSON, operation="embeddings", fields=True)
        assert (again[0].vectors, again[0].usage) == (vectors, Usage(prompt_tokens=4))


@pytest.mark.parametrize("name", ["chat", "tools", "choices"])
def test_an_answer_survives_the_way_through_canonical_chunks(
    chat: Any, begin: Any, parse: Parse, transcript: Transcript, name: str
) -> None:
    encoder = begin(chat())
    for chunk in parse([transcript(f"openai/{name}.sse")], fields=True):
        chunk.wire, chunk.raw = "other", b""
        encoder.encode(chunk)
    crossed, real = json.loads(encoder.finish()), json.loads(transcript(f"openai/{name}.json"))
    for ours, theirs in zip(crossed["choices"], real["choices"], strict=True):
        assert ours["finish_reason"] == theirs["finish_reason"]
        assert (ours["message"]["content"] or "") == theirs["message"]["content"]
        calls = [call["function"] for call in ours["message"].get("tool_calls", ())]
        assert calls == [call["function"] for call in theirs["message"].get("tool_calls", ())]


def test_a_new_attempt_forgets_the_one_before(chat: Any, begin: Any) -> None:
    encoder = begin(chat())
    encoder.encode(Chunk(wire="other", text="lost"))
    encoder.start(ResponseHead(media_type="text/event-stream"))
    encoder.encode(Chunk(wire="other", text="kept", finish="stop"))
    assert json.loads(encoder.finish())["choices"][0]["message"]["content"] == "kept"


def parser_of(operation: str = "chat", **more: Any) -> Any:
    from hostler.adapters.openai.parser import OpenAIParser

    return OpenAIParser(operation, **more)


@pytest.mark.parametrize("fields", [False, True])
@pytest.mark.parametrize("error", ERRORS)
def test_an_opening_without_a_word_is_held_back_until_one_comes(error: bytes, fields: bool) -> None:
    parser = parser_of(fields=fields)
    assert [*parser.feed(delta(role="assistant", content=""))] == []
    with pytest.raises(BackendBroken):
        parser.feed(error)
    parser.start(ResponseHead(media_type="text/event-stream"))
    opening, word = delta(role="assistant", content=""), delta(content="Hi")
    assert [*parser.feed(opening)] == []
    assert b"".join(chunk.raw for chunk in parser.feed(word)) == opening + word


def test_an_opening_is_not_held_back_for_ever() -> None:
    parser = parser_of()
    given = [chunk for _ in range(100) for chunk in parser.feed(delta(content=""))]
    assert b"".join(chunk.raw for chunk in given) == delta(content="") * 100


def test_how_far_a_prompt_is_read_is_shown_at_once() -> None:
    progress = event(choices=[{"index": 0, "delta": {}, "finish_reason": None}], prompt_progress={"processed": 1})
    assert [*parser_of().feed(progress)]


@pytest.mark.parametrize(
    ("error", "status"),
    [({"code": 402, "message": "pay"}, 402), ({"code": "rate_limited", "message": "slow"}, None), ("oops", None)],
)
def test_an_error_tells_the_status_that_it_names(error: Any, status: int | None) -> None:
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
def test_a_whole_answer_with_an_error_inside_is_no_answer(body: dict[str, Any], fields: bool) -> None:
    parser = parser_of(fields=fields)
    parser.start(JSON)
    with pytest.raises(BackendBroken, match="provider failed") as broken:
        [*parser.feed(json.dumps(body).encode()), *parser.finish()]
    assert broken.value.backend_status == 502


@pytest.mark.parametrize("media_type", ["text/event-stream", "application/json"])
def test_an_answer_that_is_not_text_is_broken(media_type: str) -> None:
    parser = parser_of(fields=True)
    parser.start(ResponseHead(media_type=media_type))
    choice = b'{"choices":[{"delta":{"content":"\xff"},"message":{"content":"\xff"}}]}'
    with pytest.raises(BackendBroken):
        parser.feed(choice if media_type == "application/json" else b"data: " + choice + b"\n\n")
        parser.finish()


@pytest.mark.parametrize("choices", [b'"x"', b'["x"]', b'[{"message":"x"}]', b'[{"message":{"tool_calls":["x"]}}]'])
def test_a_whole_answer_of_another_shape_cannot_be_told_as_a_stream(choices: bytes, chat: Any, begin: Any) -> None:
    encoder = begin(chat(stream=True))
    encoder.encode(Chunk(wire="openai", raw=b'{"choices":' + choices + b"}", is_body=True))
    with pytest.raises(BackendBroken):
        encoder.finish()

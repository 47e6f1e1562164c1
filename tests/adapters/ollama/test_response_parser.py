"""Responses of Ollama backends are decoded, wherever the bytes are cut."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.adapters.canonical import (
    Chunk,
    EmbedRequest,
    Origin,
    ResponseHead,
    ToolCall,
    Usage,
)
from hostler.adapters.errors import BackendBroken
from hostler.adapters.ollama.response_parser import OllamaParser
from hostler.adapters.ollama.upstream import OllamaUpstream

TRANSCRIPTS = Path(__file__).parents[2] / "transcripts" / "ollama"


LINES = ResponseHead(media_type="application/x-ndjson")


JSON = ResponseHead(media_type="application/json; charset=utf-8")


STREAMS = {"chat": "chat", "tools": "chat", "generate": "generate"}


def transcript(name: str) -> bytes:
    return (TRANSCRIPTS / name).read_bytes()


def parse(segments: Iterable[bytes], *, head: ResponseHead = LINES, operation: str = "chat") -> list[Chunk]:
    parser = OllamaParser(operation)
    parser.start(head)
    chunks = [chunk for segment in segments for chunk in parser.feed(segment)]
    return chunks + list(parser.finish())


@given(name=st.sampled_from(sorted(STREAMS)), places=st.lists(st.integers(0, 10_000), max_size=20))
def test_any_segmentation_gives_the_same_chunks(name: str, places: list[int]) -> None:
    stream = transcript(f"{name}.ndjson")
    edges = [0, *sorted({place % len(stream) for place in places}), len(stream)]
    segments = [stream[a:b] for a, b in pairwise(edges)]
    assert parse(segments, operation=STREAMS[name]) == parse([stream], operation=STREAMS[name])


def test_a_stream_is_fully_decoded() -> None:
    thought, word, rest, last = parse([transcript("chat.ndjson")])
    assert (thought.reasoning, word.text, rest.text) == ("hmm ", "I", " <am>\né")
    assert (word.logprobs[0].token, word.logprobs[0].bytes, len(word.logprobs[0].top)) == ("I", (73,), 1)
    assert (last.finish, last.text) == ("length", "")
    assert last.usage == Usage(prompt_tokens=11, completion_tokens=6, prompt_ms=690.582, completion_ms=8312.151)


def test_calls_are_numbered_and_finish_with_tool_calls() -> None:
    first, second, last = parse([transcript("tools.ndjson")])
    assert first.tool_calls == (ToolCall(index=0, id="abc", name="f", arguments='{"b":1,"a":"x"}'),)
    assert second.tool_calls == (ToolCall(index=1, name="g", arguments="{}"),)
    assert last.finish == "tool_calls"


def test_whole_responses_become_chunks() -> None:
    body = transcript("chat.json")
    (chunk,) = parse([body[:9], body[9:]], head=JSON)
    assert (chunk.text, chunk.reasoning, chunk.finish, chunk.is_body) == ("I am", "hm", "stop", True)
    (vectors,) = parse([transcript("embed.json")], head=JSON, operation="embed")
    assert vectors.vectors == ((0.6, 0.8), (1.0, 0.0)) and vectors.usage == Usage(prompt_tokens=4)
    (older,) = parse([b'{"embedding":[3,4]}'], head=JSON, operation="embeddings")
    assert older.vectors == ((3.0, 4.0),)


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_a_response_without_its_end_is_broken_wherever_it_stops(name: str) -> None:
    stream = transcript(f"{name}.ndjson")
    for end in range(0, len(stream) - 1, 7):
        with pytest.raises(BackendBroken):
            parse([stream[:end]], operation=STREAMS[name])


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b'{"error":"llama-server chat error: x"}\n', "llama-server chat error: x"),
        (b'{"message":{"content":"a"},"done":false}\n{"error":null}\n', "reported an error"),
        (b"<html>\n", "protocol does not allow"),
        (b"[]\n", "protocol does not allow"),
        (b"", "before it was complete"),
        (b'{"message":{"role":"assistant","content":"a"},"done":false}', "before it was complete"),
    ],
)
def test_errors_in_the_stream_are_raised(stream: bytes, message: str) -> None:
    with pytest.raises(BackendBroken, match=message):
        parse([stream])


def test_a_truncated_response_is_broken() -> None:
    body = transcript("chat.json")
    with pytest.raises(BackendBroken, match="ended after"):
        parse([body[:-5]], head=ResponseHead(length=len(body)))


@pytest.mark.parametrize(
    "message", [b'{"content":"\xff"}', b'{"tool_calls":[{"function":{"name":"f","arguments":{"a":"\xff"}}}]}']
)
def test_a_response_that_is_not_text_is_broken(message: bytes) -> None:
    with pytest.raises(BackendBroken):
        parse([b'{"message":' + message + b',"done":true}\n'])


WHOLE = b'{\n  "message": {"role": "assistant", "content": "Hi"},\n  "done": true, "eval_count": "3",' \
    b' "prompt_eval_count": 1%b\n}' % (b"0" * 400)  # fmt: skip
STREAM = b'{"message":{"content":"H"},"done":false}\n{"message":{"content":"i"},"done":true,"eval_count":3}\n'


@pytest.mark.parametrize("streamed", [True, False, None])
@pytest.mark.parametrize("media_type", ["application/json", "application/x-ndjson", "text/plain"])
@pytest.mark.parametrize("body", [WHOLE, STREAM])
def test_a_response_in_the_other_form_is_read(body: bytes, media_type: str, streamed: bool | None) -> None:
    parser = OllamaParser("chat", streamed=streamed)
    parser.start(ResponseHead(media_type=media_type))
    chunks = [chunk for at in range(0, len(body), 7) for chunk in parser.feed(body[at : at + 7])]
    chunks += parser.finish()
    assert "".join(chunk.text for chunk in chunks) == "Hi"
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.completion_tokens, usage.prompt_tokens) == (3, 0)


def test_lines_without_content_are_signs_of_life() -> None:
    empty = b'{"message":{"role":"assistant","content":""},"done":false}\n'
    word = b'{"message":{"role":"assistant","content":"Hi"},"done":false}\n'
    parser = OllamaParser("chat")
    parser.start(LINES)
    assert [*parser.feed(empty), *parser.feed(empty)] == []
    assert parser.take_signs() == empty + empty
    assert [chunk.text for chunk in parser.feed(word)] == ["Hi"]
    assert [*parser.feed(empty)] == []
    assert b"".join(chunk.raw for chunk in parser.feed(word)) == empty + word


@pytest.mark.parametrize("inputs", ["x", ["x"], ["x", "y"], ["x", "y", "z"]])
def test_each_input_has_a_vector(inputs: Any) -> None:
    origin = Origin(wire="ollama", operation="embed", body=json.dumps({"model": "m", "input": inputs}).encode())
    parser = OllamaUpstream().parser(EmbedRequest(origin=origin), fields=False)
    parser.start(ResponseHead())
    list(parser.feed(b'{"model":"m","embeddings":[[0.5],[1]]}'))
    with pytest.raises(BackendBroken, match="2 embeddings for 3 inputs") if len(inputs) == 3 else nullcontext():
        assert len([vector for chunk in parser.finish() for vector in chunk.vectors]) == 2

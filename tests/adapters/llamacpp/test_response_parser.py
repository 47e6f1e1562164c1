"""Native responses are forwarded with their usage; incomplete and invalid ones are broken."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from fakes.llamacpp_answers import STREAM, WHOLE, completion, encoder, parse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostler.adapters.canonical import (
    PromptStatus,
    ResponseHead,
    Usage,
)
from hostler.adapters.errors import BackendBroken
from hostler.adapters.llamacpp.response_parser import LlamaCppParser
from hostler.adapters.llamacpp.upstream import LlamaCppUpstream

Transcript = Callable[[str], bytes]


STREAMS = {"completion": 1, "words": 1, "prompts": 2}


COUNTS = {
    "completion": (Usage(prompt_tokens=5, completion_tokens=6, prompt_ms=308.407, completion_ms=3195.985), "length"),
    "words": (Usage(prompt_tokens=3, completion_tokens=8, prompt_ms=151.466, completion_ms=3304.143), "stop"),
    "prompts": (Usage(prompt_tokens=2, completion_tokens=4, prompt_ms=269.969, completion_ms=60.048), "length"),
}


fixtures_are_stateless = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60
)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_forwarded_as_it_came(transcript: Transcript, name: str) -> None:
    stream = transcript(f"llamacpp/{name}.sse")
    made = encoder(completion(stream=True, prompt="x"))
    chunks = parse([b":\n\n", stream[:100], stream[100:]], responses=STREAMS[name])
    assert b"".join(made.encode(chunk) for chunk in chunks) + made.finish() == b":\n\n" + stream


@fixtures_are_stateless
@given(name=st.sampled_from(sorted(STREAMS)), places=st.lists(st.integers(0, 10_000), max_size=20), dos=st.booleans())
def test_any_segmentation_gives_the_same_response(
    transcript: Transcript, name: str, places: list[int], dos: bool
) -> None:
    stream = transcript(f"llamacpp/{name}.sse")
    stream = stream.replace(b"\n", b"\r\n") if dos else stream
    edges = [0, *sorted({place % len(stream) for place in places}), len(stream)]
    chunks = parse([stream[a:b] for a, b in pairwise(edges)], responses=STREAMS[name])
    assert b"".join(chunk.raw for chunk in chunks) == stream
    last = [chunk for chunk in chunks if chunk.usage][-1]
    assert (last.usage, last.finish) == COUNTS[name]


def test_the_usage_of_several_prompts_is_added_up(transcript: Transcript) -> None:
    usage = [chunk.usage for chunk in parse([transcript("llamacpp/prompts.sse")], responses=2) if chunk.usage][-1]
    whole = [chunk.usage for chunk in parse([transcript("llamacpp/prompts.json")], head=WHOLE) if chunk.usage][-1]
    assert (usage.prompt_tokens, usage.completion_tokens) == (2, 4) == (whole.prompt_tokens, whole.completion_tokens)


def test_a_stream_that_ends_early_is_broken(transcript: Transcript) -> None:
    events = transcript("llamacpp/completion.sse").split(b"\n\n")
    with pytest.raises(BackendBroken, match="before it was complete"):
        parse([b"\n\n".join(events[:-2]) + b"\n\n"])
    with pytest.raises(BackendBroken, match="before it was complete"):
        parse([transcript("llamacpp/completion.sse")], responses=2)


def test_text_instead_of_an_event_is_broken() -> None:
    with pytest.raises(BackendBroken, match="protocol does not allow"):
        parse([b'data: {"content": "a", "stop": false}\n\nproxy error: Failed to read\n\ndata: proxy error\n\n'])


@pytest.mark.parametrize("data", [b"[", b"{", b'{"content": "a", "stop": 3, "x'])
def test_an_event_that_is_not_json_is_broken(data: bytes) -> None:
    with pytest.raises(BackendBroken, match="protocol does not allow"):
        parse([b"data: " + data + b'\n\ndata: {"content": "", "stop": true}\n\n'])


def test_an_error_in_the_stream_is_raised() -> None:
    error = b'data: {"error":{"code":500,"message":"out of cells","type":"server_error"}}\n\n'
    parser = LlamaCppParser(responses=1)
    with pytest.raises(BackendBroken, match="out of cells") as raised:
        list(parser.feed(error))
    assert raised.value.backend_status == 500
    parser.start(STREAM)
    first = list(parser.feed(b'data: {"content":"a","stop":false}\n\n'))
    assert len(first) == 1
    with pytest.raises(BackendBroken):
        list(parser.feed(error))


def test_a_stream_with_chosen_fields_may_have_no_end() -> None:
    stream = b'data: {"content":"a"}\n\ndata: {"content":"b"}\n\n'
    made = encoder(completion(stream=True, response_fields=["content"]))
    assert b"".join(made.encode(chunk) for chunk in parse([stream], responses=0)) + made.finish() == stream
    for broken in (b"", b": ping\n\n", b"data: not json\n\n", b'data: {"object":"error","message":"no"}\n\n'):
        with pytest.raises(BackendBroken):
            parse([broken], responses=0)


def test_the_parser_knows_how_many_completions_to_expect(transcript: Transcript) -> None:
    upstream = LlamaCppUpstream()
    for request, name in ((completion(prompt=["a", "b"]), "prompts"), (completion(prompt="a"), "completion")):
        parser = upstream.parser(request, fields=False)
        parser.start(STREAM)
        list(parser.feed(transcript(f"llamacpp/{name}.sse")))
        assert list(parser.finish()) == []
    chosen = upstream.parser(completion(prompt="a", response_fields=["content"]), fields=False)
    chosen.start(STREAM)
    assert list(chosen.feed(b'data: {"content":""}\n\n'))
    assert list(chosen.finish()) == []


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"[]", b"null", b'{"content":"a"', b'{"error":{"code":500}}'])
def test_what_is_no_completion_is_broken(body: bytes) -> None:
    parser = LlamaCppParser(responses=1)
    parser.start(ResponseHead())
    with pytest.raises(BackendBroken):
        [*parser.feed(body), *parser.finish()]


def test_a_large_whole_response_that_is_cut_off_is_broken() -> None:
    body = b'{"content":"' + b"x" * 400_000 + b'","stop":true}\n'
    pieces = [body[at : at + 65_536] for at in range(0, len(body), 65_536)]
    assert b"".join(chunk.raw for chunk in parse(pieces, head=WHOLE)) == body
    with pytest.raises(BackendBroken, match="before it was complete"):
        parse(pieces[:-1], head=WHOLE)
    with pytest.raises(BackendBroken, match=f"{len(body)} of 500000 bytes"):
        parse(pieces, head=ResponseHead(length=500_000))


READING = b'data: {"index":0,"content":"","stop":false,"prompt_progress":{"total":10,"processed":4,"time_ms":500}}\n\n'
WORD = b'data: {"index":0,"content":"Hi","stop":false}\n\n'


@pytest.mark.parametrize("strips", [False, True])
def test_prompt_progress_is_no_token(strips: bool) -> None:
    parser = LlamaCppParser(responses=1, strips_progress=strips)
    assert [*parser.feed(READING), *parser.feed(b":\n\n")] == []
    assert parser.prompt == PromptStatus(total=10, processed=4, seconds=0.5)
    assert parser.take_signs() == (b"" if strips else READING) + b":\n\n"
    assert b"".join(chunk.raw for chunk in parser.feed(WORD)) == WORD
    assert [*parser.feed(b":\n\n")] == []
    assert parser.take_signs() == b":\n\n"

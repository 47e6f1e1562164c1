"""Native responses are forwarded byte by byte, folded, or encoded from other protocols."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import pytest
from fakes.llamacpp_answers import STREAM, WHOLE, completion, encoder, parse

from hostler.adapters.canonical import (
    Chunk,
    CompletionRequest,
    LoadRequest,
    Origin,
    Output,
    Progress,
    ResponseHead,
    Usage,
)
from hostler.adapters.errors import ModelUnavailable
from hostler.adapters.llamacpp.encoder import CompletionFold
from hostler.adapters.llamacpp.operations import OTHER

Transcript = Callable[[str], bytes]


@pytest.mark.parametrize("name", ["completion", "words"])
def test_a_folded_response_is_the_servers_own_whole_response(transcript: Transcript, name: str) -> None:
    made = encoder(completion(prompt="x", return_tokens=name == "words"))
    content = [made.encode(chunk) for chunk in parse([transcript(f"llamacpp/{name}.sse")])]
    body = made.finish()
    folded, real = json.loads(body), json.loads(transcript(f"llamacpp/{name}.json"))
    assert not any(content)
    assert (made.media_type, made.length) == ("application/json; charset=utf-8", len(body))
    assert list(folded) == list(real)
    for response in (folded, real):
        response.pop("timings")
    assert folded == real


def test_a_whole_response_is_forwarded_as_it_came(transcript: Transcript) -> None:
    body = transcript("llamacpp/prompts.json")
    head = ResponseHead(media_type="application/json; charset=utf-8", length=len(body))
    made = encoder(completion(prompt=["One", "Two"]), head)
    assert b"".join(made.encode(chunk) for chunk in parse([body[:9], body[9:]], head=head)) + made.finish() == body
    assert (made.media_type, made.length) == (head.media_type, len(body))


def test_a_whole_response_becomes_a_stream_for_a_streaming_client() -> None:
    made = encoder(completion(stream=True, prompt="x"), WHOLE)
    content = b"".join(made.encode(chunk) for chunk in parse([b'{\n "content": "a b",\n "stop": true}'], head=WHOLE))
    assert content + made.finish() == b'data: {"content":"a b","stop":true}\n\n'


def test_nothing_of_an_earlier_attempt_is_folded() -> None:
    made = encoder(completion(prompt="x"))
    made.encode(Chunk(wire="llamacpp", raw=b'data: {"content":"old","stop":false}\n\n'))
    made.start(STREAM)
    made.encode(Chunk(wire="llamacpp", raw=b'data: {"content":"new","stop":true}\n\n'))
    assert json.loads(made.finish())["content"] == "new"


def test_chunks_of_another_protocol_become_native_events() -> None:
    usage = Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=1)
    chunks = [Chunk(wire="openai", text="a"), Chunk(wire="openai", text="b", finish="length"), Chunk(usage=usage)]
    request = CompletionRequest(origin=completion(prompt="x").origin, model="a", output=Output(stream=True))
    made = encoder(request)
    stream = b"".join(made.encode(chunk) for chunk in chunks) + made.finish()
    assert b"".join(chunk.raw for chunk in parse([stream])) == stream
    assert [chunk.finish for chunk in parse([stream])] == ["length"]
    whole = encoder(msgspec.structs.replace(request, output=Output()), WHOLE)
    assert not any(whole.encode(chunk) for chunk in chunks)
    response = json.loads(whole.finish())
    assert (response["content"], response["stop"], response["prompt"], response["stop_type"]) == (
        "ab",
        True,
        "x",
        "limit",
    )
    assert (response["tokens_evaluated"], response["tokens_predicted"], response["timings"]["cache_n"]) == (5, 2, 1)


def test_heartbeats_are_comments() -> None:
    progress = Progress(phase="loading", model="b\nc", percent=40)
    assert encoder(completion(stream=True)).heartbeat(progress) == b": [hostler] loading bc: 40%\n\n"
    assert encoder(completion(stream=True), progress="off").heartbeat(progress) == b""
    assert encoder(completion()).heartbeat(progress) == b""
    # What an unknown route streams may be no events.
    assert encoder(completion(stream=True, operation=OTHER)).heartbeat(progress) == b""


def test_an_error_after_the_start_is_an_event() -> None:
    error = ModelUnavailable("gone")
    content = encoder(completion(stream=True)).error(error)
    assert content == b'data: {"error":{"code":503,"message":"gone","type":"unavailable_error"}}\n\n'
    assert encoder(completion()).error(error) == b""


def test_loading_is_answered_when_it_is_done() -> None:
    made = encoder(
        LoadRequest(origin=Origin(wire="llamacpp", operation="load"), kind="load", model="a"), ResponseHead()
    )
    assert (made.finish(), made.streaming) == (b'{"success":true}', False)


def test_unknown_fields_survive_folding_and_the_last_one_counts() -> None:
    fold = CompletionFold(tokens=False)
    for event in (
        {"content": "a", "x": 1, "y": 1, "stop": False},
        {"content": "b", "y": 2, "stop": False},
        {"content": "", "z": 3, "stop": True},
    ):
        fold.add_events(b"data: " + json.dumps(event).encode() + b"\n\n")
    assert json.loads(fold.result()) == {"content": "ab", "tokens": [], "x": 1, "y": 2, "z": 3, "stop": True}

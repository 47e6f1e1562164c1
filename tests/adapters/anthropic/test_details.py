"""Details that an engine reports only on request: the prompt's length at once, and the stop sequence that was hit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters import sse
from hostler.adapters.canonical import Chunk, ResponseHead
from hostler.adapters.llamacpp.upstream import LlamaCppUpstream
from hostler.adapters.openai.response_parser import OpenAIParser
from hostler.adapters.openai.upstream import OpenAIUpstream

STREAM = ResponseHead(media_type="text/event-stream")


@pytest.fixture
def request_for(decode_request: Any) -> Any:
    def make(**fields: Any) -> Any:
        body = {"model": "a", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}], **fields}
        return decode_request("/v1/messages", body)

    return make


def event(**body: Any) -> bytes:
    return sse.event(json.dumps(body).encode())


def delta(finish: str | None = None, choice: dict[str, Any] | None = None, **content: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": content, "finish_reason": finish, **(choice or {})}]}


PROGRESS = event(**delta(content=None), prompt_progress={"total": 23, "cache": 3, "processed": 23, "time_ms": 9})
WORD = event(**delta(content="is "))
USAGE = event(choices=[], usage={"prompt_tokens": 23, "completion_tokens": 6})
DONE = b"data: [DONE]\n\n"


def parsed(*segments: bytes) -> list[Chunk]:
    parser = OpenAIParser("chat", fields=True)
    parser.start(STREAM)
    return [*(chunk for segment in segments for chunk in parser.feed(segment)), *parser.finish()]


def test_an_engine_is_asked_for_progress_and_stop_sequences(request_for: Any) -> None:
    sent = json.loads(LlamaCppUpstream().build(request_for(stop_sequences=["X"]), model="a", stream=True).body)
    assert (sent["return_progress"], sent["verbose"]) == (True, True)


def test_debugging_output_is_requested_only_with_stop_sequences(request_for: Any) -> None:
    assert "verbose" not in json.loads(LlamaCppUpstream().build(request_for(), model="a", stream=True).body)


def test_strict_servers_are_not_asked_for_details(request_for: Any) -> None:
    sent = json.loads(OpenAIUpstream().build(request_for(stop_sequences=["X"]), model="a", stream=True).body)
    assert not {"return_progress", "verbose"} & sent.keys()


def streamed(start_encoder: Any, request: Any, chunks: list[Chunk]) -> list[Any]:
    encoder = start_encoder(request)
    data = b"".join([*(encoder.encode(chunk) for chunk in chunks), encoder.finish()])
    return [json.loads(found) for _, found in sse.iter_events(data)]


@pytest.mark.parametrize("at_once", [True, False])
def test_the_first_event_has_the_prompts_length(request_for: Any, start_encoder: Any, at_once: bool) -> None:
    segments = [PROGRESS, WORD, event(**delta("stop")), USAGE, DONE]
    chunks = parsed(b"".join(segments)) if at_once else parsed(*segments)
    found = streamed(start_encoder, request_for(stream=True), chunks)
    assert found[0]["message"]["usage"]["input_tokens"] == 20
    assert found[0]["message"]["usage"]["cache_read_input_tokens"] == 3
    assert found[-2]["usage"]["output_tokens"] == 6


def test_prompt_progress_is_no_token(request_for: Any) -> None:
    parser = OpenAIParser("chat", fields=True)
    parser.start(STREAM)
    assert list(parser.feed(PROGRESS)) == []


@pytest.mark.parametrize(
    ("last", "reason", "word"),
    [
        ({**delta("stop"), "__verbose": {"stop_type": "word", "stopping_word": "Paris"}}, "stop_sequence", "Paris"),
        ({**delta("stop"), "__verbose": {"stop_type": "eos", "stopping_word": ""}}, "end_turn", None),
        (delta("stop", {"stop_reason": "Paris"}), "stop_sequence", "Paris"),
        (delta("stop", {"stop_reason": 151645}), "end_turn", None),
        (delta("stop", {"matched_stop": "Paris"}), "stop_sequence", "Paris"),
        (delta("length"), "max_tokens", None),
    ],
    ids=["llama.cpp", "llama.cpp's own end", "vLLM", "vLLM's token", "SGLang", "none"],
)
def test_the_stop_sequence_that_was_hit_is_reported(
    request_for: Any, start_encoder: Any, last: dict[str, Any], reason: str, word: str | None
) -> None:
    chunks = parsed(WORD, event(**last), USAGE, DONE)
    for stream in (True, False):
        encoder = start_encoder(request_for(stream=stream))
        data = b"".join([*(encoder.encode(chunk) for chunk in chunks), encoder.finish()])
        found = [json.loads(body) for _, body in sse.iter_events(data)][-2]["delta"] if stream else json.loads(data)
        assert (found["stop_reason"], found["stop_sequence"]) == (reason, word)

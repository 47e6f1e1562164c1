"""Responses in LM Studio's protocol: its own chat, and its statistics in OpenAI's responses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters import sse
from hostler.adapters.base import Encoder, Incoming, Timing
from hostler.adapters.canonical import Chunk, Progress, ProgressPhase, Request, ResponseHead, Usage
from hostler.adapters.errors import BackendBroken
from hostler.adapters.lmstudio.adapter import LMStudioAdapter
from hostler.adapters.lmstudio.encoder import StatsEncoder
from hostler.adapters.model_list import ModelCard
from hostler.adapters.openai.response_parser import OpenAIParser
from hostler.profiles.schema import ModelFacts

ADAPTER = LMStudioAdapter()


STREAM = ResponseHead(media_type="text/event-stream")


USAGE = Usage(prompt_tokens=24, completion_tokens=50, reasoning_tokens=3, prompt_ms=111.0, completion_ms=1000.0)


SAID = (
    Chunk(reasoning="Hm."), Chunk(text="It "), Chunk(text="is."), Chunk(finish="length"), Chunk(usage=USAGE),
)  # fmt: skip


CARD = ModelCard(name="a", context=4096, facts=ModelFacts(architecture="granite", quantization="Q4_K_M"))


def requested(path: str, **body: Any) -> Request:
    operation = next(each for each in ADAPTER.operations if each.path == path)
    return ADAPTER.decode(
        operation, Incoming(method="POST", path=path, body=json.dumps({"model": "a", **body}).encode())
    )


def encoder(request: Request, *, progress: str = "thinking") -> Encoder:
    return ADAPTER.encoder(request, response_id="id-1", created=1, progress=progress)


def events(data: bytes) -> list[Any]:
    result = [(name, json.loads(each)) for name, each in sse.iter_events(data)]
    assert all(name == event["type"] for name, event in result)
    return [event for _, event in result]


RESULT = {
    "model_instance_id": "a",
    "output": [{"type": "reasoning", "content": "Hm."}, {"type": "message", "content": "It is."}],
    "stats": {
        "input_tokens": 24, "total_output_tokens": 50, "reasoning_output_tokens": 3, "tokens_per_second": 50.0,
        "time_to_first_token_seconds": 0.111,
    },
}  # fmt: skip


def test_a_whole_response() -> None:
    writing = encoder(requested("/api/v1/chat", input="What?"))
    writing.start(STREAM)
    assert not any(writing.encode(chunk) for chunk in SAID)
    body = writing.finish()
    assert json.loads(body) == RESULT
    assert (writing.media_type, writing.length) == ("application/json", len(body))


def test_a_stream_starts_and_ends_with_named_events() -> None:
    writing = encoder(requested("/api/v1/chat", input="What?", stream=True))
    writing.start(STREAM)
    result = events(b"".join([*(writing.encode(chunk) for chunk in SAID), writing.finish()]))
    assert [event["type"] for event in result] == [
        "chat.start", "reasoning.start", "reasoning.delta", "reasoning.end", "message.start", "message.delta",
        "message.delta", "message.end", "chat.end",
    ]  # fmt: skip
    assert result[-1]["result"] == RESULT


def test_loading_is_reported_in_the_protocols_own_events() -> None:
    writing = encoder(requested("/api/v1/chat", input="What?", stream=True))
    waits = [Progress(phase="queued", model="a", position=1)]
    waits += [Progress(phase="loading", model="a", percent=percent, waited_s=2.5) for percent in (25.0, 50.0)]
    result = b"".join(writing.heartbeat(each) for each in waits)
    assert result.startswith(b": [hostler] ")
    writing.start(STREAM)
    result += writing.encode(Chunk(text="It"))
    assert [(event["type"], event.get("progress"), event.get("load_time_seconds")) for event in events(result)] == [
        ("chat.start", None, None), ("model_load.start", None, None), ("model_load.progress", 0.25, None),
        ("model_load.progress", 0.5, None), ("model_load.end", None, 2.5), ("message.start", None, None),
        ("message.delta", None, None),
    ]  # fmt: skip
    assert encoder(requested("/api/v1/chat", input="x", stream=True), progress="off").heartbeat(waits[1]) == b""


def test_reading_the_prompt_is_reported_in_the_protocols_own_events() -> None:
    writing = encoder(requested("/api/v1/chat", input="What?", stream=True))
    waits = [Progress(phase="loading", model="a", waited_s=2.5), Progress(phase="loading", model="a", waited_s=3.0)]
    waits += [Progress(phase="reading the prompt", model="a", percent=percent) for percent in (None, 50.0)]
    result = b"".join(writing.heartbeat(each) for each in waits)
    writing.start(STREAM)
    result += writing.encode(Chunk(text="It"))
    assert [event["type"] for event in events(result)] == [
        "chat.start", "model_load.start", "model_load.end", "prompt_processing.start", "prompt_processing.progress",
        "prompt_processing.end", "message.start", "message.delta",
    ]  # fmt: skip


def test_a_sign_of_life_is_never_empty() -> None:
    writing = encoder(requested("/api/v1/chat", input="What?", stream=True))
    phases: tuple[ProgressPhase, ...] = ("queued", "loading", "reading the prompt")
    assert all(writing.heartbeat(Progress(phase=phase, model="a")) for phase in phases for _ in range(2))


def test_an_error_is_followed_by_the_output_so_far() -> None:
    writing = encoder(requested("/api/v1/chat", input="What?", stream=True))
    writing.start(STREAM)
    result = events(writing.encode(Chunk(text="It")) + writing.error(BackendBroken("it broke")))
    assert [event["type"] for event in result[-3:]] == ["message.end", "error", "chat.end"]
    assert (result[-2]["error"]["type"], result[-2]["error"]["message"]) == ("internal_error", "it broke")
    assert result[-1]["result"]["output"] == [{"type": "message", "content": "It"}]


FIGURES = {
    "stats": {
        "tokens_per_second": 50.0, "time_to_first_token": 0.111, "generation_time": 1.0,
        "stop_reason": "maxPredictedTokensReached",
    },
    "model_info": {"arch": "granite", "quant": "Q4_K_M", "format": "gguf", "context_length": 4096},
}  # fmt: skip


PATHS = {
    "/api/v0/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/api/v0/completions": {"prompt": "x"},
}


def met(request: Request) -> StatsEncoder:
    writing = encoder(request)
    assert isinstance(writing, StatsEncoder)
    writing.bind_model(CARD)
    return writing


@pytest.mark.parametrize("path", PATHS)
def test_a_whole_v0_response_has_stats(path: str) -> None:
    writing = met(requested(path, **PATHS[path]))
    writing.start(STREAM)
    assert not any(writing.encode(chunk) for chunk in SAID)
    body = writing.finish()
    response = json.loads(body)
    assert {name: response[name] for name in FIGURES} == FIGURES
    assert (response["runtime"]["name"], response["usage"]["total_tokens"], writing.length) == (
        "hostler",
        74,
        len(body),
    )


@pytest.mark.parametrize("path", PATHS)
def test_a_v0_stream_has_stats_before_its_end(path: str) -> None:
    writing = met(requested(path, stream=True, **PATHS[path]))
    writing.start(STREAM)
    encoded = b"".join([*(writing.encode(chunk) for chunk in SAID), writing.finish()])
    assert encoded.endswith(b"data: [DONE]\n\n")
    last = json.loads(encoded.split(b"data: ")[-2])
    assert ({name: last[name] for name in FIGURES}, last["choices"]) == (FIGURES, [])


def test_forwarded_bytes_stay_as_they_are() -> None:
    chat = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    writing = met(requested("/api/v0/chat/completions", **chat))
    theirs = b'data: {"choices":[{"delta":{"content":"A"}}]}\n\n'
    end = (
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    )
    parser = OpenAIParser("chat")
    parser.start(STREAM)
    writing.start(STREAM)
    chunks = [*parser.feed(theirs + end + b"data: [DONE]\n\n"), *parser.finish()]
    encoded = b"".join([*(writing.encode(chunk) for chunk in chunks), writing.finish()])
    assert encoded.startswith(theirs + end)
    assert b'"eosFound"' in encoded


def test_without_the_engines_times_the_gateways_are_used() -> None:
    writing = met(requested("/api/v0/completions", prompt="x"))
    writing.start(STREAM)
    writing.encode(Chunk(text="A", finish="stop", usage=Usage(prompt_tokens=1, completion_tokens=10)))
    writing.set_timing(Timing(queue_s=1.0, switch_s=2.0, total_s=5.0))
    stats = json.loads(writing.finish())["stats"]
    assert (stats["generation_time"], stats["tokens_per_second"]) == (2.0, 5.0)


def test_a_whole_response_that_is_no_object_stays_as_it_is() -> None:
    writing = met(requested("/api/v0/completions", prompt="x"))
    writing.start(ResponseHead(length=2))
    assert writing.encode(Chunk(wire="openai", raw=b"[]", is_body=True)) == b""
    assert writing.finish() == b"[]"

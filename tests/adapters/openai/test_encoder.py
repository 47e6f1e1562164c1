"""Responses in OpenAI's protocol: forwarded byte by byte, folded without loss, or encoded from other protocols."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from hostler.adapters import sse
from hostler.adapters.canonical import Chunk, ResponseHead, TokenLogprob, ToolCall, Usage
from hostler.adapters.errors import BackendBroken
from hostler.adapters.openai.fold import StreamFold

Parse = Callable[..., list[Chunk]]


Transcript = Callable[[str], bytes]


JSON = ResponseHead()


STREAMS = {
    "chat": "chat", "choices": "chat", "tools": "chat", "empty": "chat", "structured": "chat", "openrouter": "chat",
    "completions": "completions", "prompts": "completions", "responses": "responses",
}  # fmt: skip


def event(**body: Any) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def delta(finish: str | None = None, **content: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": content, "finish_reason": finish}])


DONE = b"data: [DONE]\n\n"


# Fields that differ between two runs: ids, times and speeds, and how much of the prompt was cached.
CHANCE = re.compile(
    rb'"(id|created|cached_tokens|cache_n|prompt_n|[a-z_]+_ms|[a-z_]+_per_second)":("\w[\w-]*"|[0-9.e-]+)'
)


@pytest.mark.parametrize("name", ["chat", "choices", "tools", "empty", "structured", "completions"])
def test_a_folded_response_is_the_servers_own_whole_response(
    chat: Any, decode_request: Any, start_encoder: Any, parse: Parse, transcript: Transcript, name: str
) -> None:
    request = decode_request("/v1/completions", {"prompt": ""}) if name == "completions" else chat()
    encoder = start_encoder(request)
    encoded = [encoder.encode(chunk) for chunk in parse([transcript(f"openai/{name}.sse")], operation=STREAMS[name])]
    folded = encoder.finish()
    real = transcript(f"openai/{name}.json")
    assert not any(encoded)
    assert (encoder.media_type, encoder.length) == ("application/json; charset=utf-8", len(folded))
    assert CHANCE.sub(rb'"\1":0', folded) == CHANCE.sub(rb'"\1":0', real)


def test_a_response_that_starts_with_half_a_character_has_its_role() -> None:
    fold = StreamFold()
    fold.add_events(delta(content="П") + delta("stop") + DONE)
    assert json.loads(fold.result())["choices"][0]["message"] == {"role": "assistant", "content": "П"}


def test_numbers_keep_their_spelling_when_folded() -> None:
    fold = StreamFold()
    fold.add_events(event(choices=[{"index": 0, "delta": {"content": "a"}}]))
    numbers = b'{"tiny":-1.1920928955078125e-07,"large":1e+20,"zero":-0.0,"round":2.0,"long":12345678901234567890}'
    fold.add_events(b'data: {"choices":[],"timings":' + numbers + b"}\n\n")
    assert b'"timings":' + numbers in fold.result()


def test_a_folded_responses_stream_is_the_completed_response(
    decode_request: Any, start_encoder: Any, parse: Parse, transcript: Transcript
) -> None:
    encoder = start_encoder(decode_request("/v1/responses", {"input": "x"}))
    for chunk in parse([transcript("openai/responses.sse")], operation="responses"):
        encoder.encode(chunk)
    folded, real = json.loads(encoder.finish()), json.loads(transcript("openai/responses.json"))
    assert folded["status"] == "completed"
    assert folded["output"][0]["content"] == real["output"][0]["content"]
    assert folded["usage"]["output_tokens"] == real["usage"]["output_tokens"]


def test_folding_loses_no_field_of_other_servers(transcript: Transcript) -> None:
    fold = StreamFold()
    fold.add_events(transcript("openai/openrouter.sse"))
    response = json.loads(fold.result())
    assert response["provider"] == "Together"
    assert response["object"] == "chat.completion"
    assert response["usage"]["cost"] == 0.000012
    assert response["choices"] == [
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


def test_the_pieces_of_several_tool_calls_are_assembled() -> None:
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


def test_a_whole_response_is_forwarded_with_its_length(
    chat: Any, start_encoder: Any, parse: Parse, transcript: Transcript
) -> None:
    body = transcript("openai/chat.json")
    head = ResponseHead(media_type="application/json; charset=utf-8", length=len(body))
    encoder = start_encoder(chat(), head)
    chunks = parse([body[:100], body[100:]], head=head)
    assert b"".join(encoder.encode(chunk) for chunk in chunks) + encoder.finish() == body
    assert (encoder.length, encoder.media_type) == (len(body), "application/json; charset=utf-8")
    assert (chunks[-1].usage or Usage()).completion_tokens == 6


def test_a_whole_response_becomes_a_stream_for_a_streaming_client(
    chat: Any, start_encoder: Any, parse: Parse, transcript: Transcript
) -> None:
    encoder = start_encoder(chat(stream=True), JSON)
    body = transcript("openai/tools.json")
    encoded = b"".join(encoder.encode(chunk) for chunk in parse([body], head=JSON)) + encoder.finish()
    fold = StreamFold()
    fold.add_events(encoded)
    assert json.loads(fold.result())["choices"] == json.loads(body)["choices"]
    assert encoded.endswith(DONE)
    assert encoder.media_type == "text/event-stream"


OTHER = [
    Chunk(wire="other", reasoning="Hm."),
    Chunk(wire="other", text="Hi", logprobs=(TokenLogprob(token="Hi", logprob=-0.5),)),
    Chunk(wire="other", tool_calls=(ToolCall(name="f", arguments="{}"),)),
    Chunk(wire="other", finish="tool_calls", usage=Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)),
]


@pytest.mark.parametrize(
    ("path", "answer_id", "result"),
    [
        ("/v1/chat/completions", "req-0a1b", "chatcmpl-0a1b"),
        ("/v1/completions", "req-0a1b", "cmpl-0a1b"),
        ("/v1/chat/completions", "the-clients-own", "the-clients-own"),
    ],
)
def test_a_response_of_another_protocol_has_an_id_in_openais_form(
    adapter: Any, decode_request: Any, path: str, answer_id: str, result: str
) -> None:
    request = decode_request(path, {"model": "a", "messages": [{"role": "user", "content": "x"}], "prompt": "x"})
    encoder = adapter.encoder(request, response_id=answer_id, created=1, progress="off")
    encoder.start(ResponseHead())
    call = Chunk(wire="other", tool_calls=(ToolCall(name="f", arguments="{}"),))
    told_whole = encoder.encode(call) + encoder.encode(Chunk(wire="other", finish="stop")) + encoder.finish()
    response = json.loads(told_whole)
    assert response["id"] == result
    for made_up in response["choices"][0].get("message", {}).get("tool_calls", ()):
        assert made_up["id"].startswith("call_") and "req" not in made_up["id"]


def test_chunks_of_another_protocol_are_encoded_as_a_stream(chat: Any, start_encoder: Any) -> None:
    encoder = start_encoder(chat(stream=True, stream_options={"include_usage": True}))
    encoded = b"".join(encoder.encode(chunk) for chunk in OTHER) + encoder.finish()
    events = [json.loads(data) for _, data in sse.iter_events(encoded) if data != b"[DONE]"]
    assert {(one["id"], one["object"], one["created"], one["model"]) for one in events} == {
        ("chatcmpl-1", "chat.completion.chunk", 1700000000, "a")
    }
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert (events[-1]["choices"], events[-1]["usage"]["total_tokens"]) == ([], 5)
    assert encoded.endswith(DONE)


def test_chunks_of_another_protocol_are_folded_into_a_whole_response(chat: Any, start_encoder: Any) -> None:
    encoder = start_encoder(chat())
    assert [encoder.encode(chunk) for chunk in OTHER] == [b""] * 4
    response = json.loads(encoder.finish())
    choice = response["choices"][0]
    assert (response["object"], choice["message"]["content"], choice["message"]["reasoning_content"]) == (
        "chat.completion",
        "Hi",
        "Hm.",
    )
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert choice["logprobs"]["content"][0]["logprob"] == -0.5
    assert response["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}


@pytest.mark.parametrize("streaming", [True, False])
def test_timings_of_another_protocol_are_llama_cpps(chat: Any, start_encoder: Any, streaming: bool) -> None:
    usage = Usage(prompt_tokens=11, completion_tokens=6, cached_tokens=3, prompt_ms=80.0, completion_ms=120.0)
    encoder = start_encoder(chat(stream=streaming, stream_options={"include_usage": True}))
    encoded = [encoder.encode(Chunk(text="Hi")), encoder.encode(Chunk(finish="stop", usage=usage)), encoder.finish()]
    last = encoded[-1].removeprefix(b"data: ").partition(b"\n\n")[0]
    assert json.loads(last)["timings"] == {
        "cache_n": 3,
        "prompt_n": 8,
        "prompt_ms": 80.0,
        "prompt_per_token_ms": 10.0,
        "prompt_per_second": 100.0,
        "predicted_n": 6,
        "predicted_ms": 120.0,
        "predicted_per_token_ms": 20.0,
        "predicted_per_second": 50.0,
    }


def test_completions_of_another_protocol_are_plain_text(decode_request: Any, start_encoder: Any) -> None:
    encoder = start_encoder(decode_request("/v1/completions", {"model": "a", "prompt": "x"}))
    for chunk in (Chunk(wire="other", text="Hi"), Chunk(wire="other", text="!", finish="stop")):
        encoder.encode(chunk)
    response = json.loads(encoder.finish())
    assert (response["object"], response["choices"][0]["text"], response["choices"][0]["finish_reason"]) == (
        "text_completion",
        "Hi!",
        "stop",
    )


def test_embeddings_of_another_protocol_have_the_requested_encoding(
    decode_request: Any, start_encoder: Any, parse: Parse
) -> None:
    vectors = ((0.5, -1.0), (2.0, 0.25))
    for form in ("float", "base64"):
        encoder = start_encoder(
            decode_request("/v1/embeddings", {"model": "a", "input": ["x", "y"], "encoding_format": form}), JSON
        )
        encoder.encode(Chunk(wire="other", is_body=True, vectors=vectors, usage=Usage(prompt_tokens=4)))
        body = encoder.finish()
        assert isinstance(json.loads(body)["data"][1]["embedding"], str if form == "base64" else list)
        again = parse([body], head=JSON, operation="embeddings", fields=True)
        assert tuple(vector for chunk in again for vector in chunk.vectors) == vectors
        assert again[0].usage == Usage(prompt_tokens=4)


@pytest.mark.parametrize("name", ["chat", "tools", "choices"])
def test_a_response_survives_decoding_and_encoding(
    chat: Any, start_encoder: Any, parse: Parse, transcript: Transcript, name: str
) -> None:
    encoder = start_encoder(chat())
    for chunk in parse([transcript(f"openai/{name}.sse")], fields=True, choices=2 if name == "choices" else 1):
        chunk.wire, chunk.raw = "other", b""
        encoder.encode(chunk)
    crossed, real = json.loads(encoder.finish()), json.loads(transcript(f"openai/{name}.json"))
    for ours, theirs in zip(crossed["choices"], real["choices"], strict=True):
        assert ours["finish_reason"] == theirs["finish_reason"]
        assert (ours["message"]["content"] or "") == theirs["message"]["content"]
        calls = [call["function"] for call in ours["message"].get("tool_calls", ())]
        assert calls == [call["function"] for call in theirs["message"].get("tool_calls", ())]


def test_a_new_attempt_discards_the_one_before(chat: Any, start_encoder: Any) -> None:
    encoder = start_encoder(chat())
    encoder.encode(Chunk(wire="other", text="lost"))
    encoder.start(ResponseHead(media_type="text/event-stream"))
    encoder.encode(Chunk(wire="other", text="kept", finish="stop"))
    assert json.loads(encoder.finish())["choices"][0]["message"]["content"] == "kept"


@pytest.mark.parametrize("choices", [b'"x"', b'["x"]', b'[{"message":"x"}]', b'[{"message":{"tool_calls":["x"]}}]'])
def test_an_invalid_whole_response_cannot_become_a_stream(choices: bytes, chat: Any, start_encoder: Any) -> None:
    encoder = start_encoder(chat(stream=True))
    encoder.encode(Chunk(wire="openai", raw=b'{"choices":' + choices + b"}", is_body=True))
    with pytest.raises(BackendBroken):
        encoder.finish()
